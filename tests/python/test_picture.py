"""Tests of scripts/picture.py: the effect of escape sequences on the screen."""

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

    def test_a_redrawn_progress_bar_replaces_itself(self):
        self.assertEqual(self.screen("one\r\n10%\r\x1b[2K20%").text(), "one\n20%")

    def test_a_line_printed_above_a_progress_bar_moves_it_down(self):
        screen = self.screen("10%\r\x1b[2Kepoch 1\r\n20%")
        self.assertEqual(screen.text(), "epoch 1\n20%")

    def test_a_long_line_wraps(self):
        self.assertEqual(self.screen("abcdef", columns=4).text(), "abcd\nef")

    def test_styles_start_and_end(self):
        line = self.screen("\x1b[1mbold\x1b[0m \x1b[36mcyan\x1b[0m").lines[0]
        styles = [style for _, _, style in picture.runs(line)]
        self.assertEqual(styles, [(None, True), (None, False), (picture.COLOURS[6], False)])

    def test_the_picture_is_well_formed_and_contains_the_text(self):
        drawn = picture.svg(self.screen("a < b & \x1b[31mc\x1b[0m"), "x > y", 10)
        texts = [element.text for element in ElementTree.fromstring(drawn).iter()]
        self.assertIn("a < b & ", texts)
        self.assertIn("x > y", texts)


if __name__ == "__main__":
    unittest.main()
