"""The search itself: what an objective's author imports is handed out here, lazily, so that commands start fast."""
