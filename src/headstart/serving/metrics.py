"""What the server counts, for Prometheus: each app has a registry of its own."""

from collections.abc import Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from headstart.models.inference import Answer

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
# Of refusals; a 400 says itself whether the body or what it holds is wrong.
_KINDS = {
    401: "no_key",
    404: "not_found",
    405: "method",
    408: "too_slow",
    413: "too_large",
    415: "media_type",
    499: "hung_up",
    503: "busy",
}


class ServingMetrics:
    """Counters, gauges and histograms of one app; nothing in them tells what was sent."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        # Memory, CPU seconds and open files.
        ProcessCollector(registry=registry)
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        what = "Requests answered."
        self.requests = counter("headstart_requests", what, ["route", "status"])
        what = "Requests refused or failed, and single images without an answer (image)."
        self.errors = counter("headstart_errors", what, ["kind"])
        what, name = "From a request's headers to its answer.", "headstart_request_duration_seconds"
        self.seconds = histogram(name, what, ["route"], buckets=_SECONDS)
        what = "Images of requests that were answered."
        self.images = histogram("headstart_images_per_request", what, buckets=_IMAGES)
        self.waiting = gauge("headstart_waiting_requests", "Requests that wait for a core.")
        self.held_bytes = gauge("headstart_held_bytes", "Bytes of all bodies in memory.")
        what = "The best probability of each image."
        self.probability = histogram("headstart_best_probability", what, buckets=_TENTHS)
        what = "The novelty of each image: 0 typical, 1 novel."
        self.novelty = histogram("headstart_novelty", what, buckets=_TENTHS)

    def count_request(self, route: str, status: int, seconds: float, kind: str) -> None:
        """Count one request.

        Args:
            route: one of the app's own; addresses that clients made up would be without number.
            kind: of a 400.
        """
        self.requests.labels(route, status).inc()
        self.seconds.labels(route).observe(seconds)
        if status >= 400:
            self.errors.labels(_KINDS.get(status, kind if status < 500 else "failure")).inc()

    def count_answers(self, answers: Sequence[Answer]) -> None:
        """Count what one request was answered."""
        self.images.observe(len(answers))
        for answer in answers:
            if answer.probabilities is None:
                self.errors.labels("image").inc()
                continue
            self.probability.observe(float(answer.probabilities.max()))
            if answer.novelty is not None:
                self.novelty.observe(answer.novelty)
