"""The picture of a terminal: what the escape sequences do to the screen."""

import sys
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import picture  # noqa: E402


class ScreenTest(unittest.TestCase):
    def screen(self, text: str, columns: int = 20) -> picture.Screen:
        screen = picture.Screen(columns)
        screen.feed(text)
        return screen

    def test_a_bar_that_is_drawn_again_replaces_itself(self):
        self.assertEqual(self.screen("one\r\n10%\r\x1b[2K20%").text(), "one\n20%")

    def test_a_line_above_a_bar_pushes_it_down(self):
        shown = self.screen("10%\r\x1b[2Kepoch 1\r\n20%")
        self.assertEqual(shown.text(), "epoch 1\n20%")

    def test_a_long_line_goes_on_in_the_next_one(self):
        self.assertEqual(self.screen("abcdef", columns=4).text(), "abcd\nef")

    def test_colours_begin_and_end(self):
        line = self.screen("\x1b[1mbold\x1b[0m \x1b[36mcyan\x1b[0m").lines[0]
        styles = [style for _, _, style in picture.runs(line)]
        self.assertEqual(styles, [(None, True), (None, False), (picture.COLOURS[6], False)])

    def test_the_picture_is_well_formed_and_has_the_text(self):
        drawn = picture.svg(self.screen("a < b & \x1b[31mc\x1b[0m"), "x > y", 10)
        texts = [element.text for element in ElementTree.fromstring(drawn).iter()]
        self.assertIn("a < b & ", texts)
        self.assertIn("x > y", texts)


if __name__ == "__main__":
    unittest.main()
