"""Prints what TensorBoard's own reader finds in a folder of event files: a JSON
object of the scalars, each a list of [step, value]."""

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
