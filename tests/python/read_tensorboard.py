"""Reads a folder of event files with TensorBoard's own reader. Prints the scalars
as a JSON object: for each tag, a list of [step, value]."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

accumulator = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
accumulator.Reload()
tags = accumulator.Tags()["scalars"]
print(json.dumps({
    tag: [[scalar.step, scalar.value] for scalar in accumulator.Scalars(tag)]
    for tag in tags
}))
