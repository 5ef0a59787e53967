"""A rank that tells very much: thousands of events, then its result."""

import talk

talk.end_with_the_worker()
for i in range(talk.PAYLOAD["events"]):
    talk.emit("progress", step=i)
talk.emit("result", value=2**70)
