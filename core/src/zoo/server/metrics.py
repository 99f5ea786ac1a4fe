"""What `/metrics` says, in Prometheus' text form. One registry per server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The counters of one server. Any thread may count."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("zoo_requests", "Answered requests.", ["path", "status"], registry=registry)
        self.prompt_tokens = Counter("zoo_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.cached_tokens = Counter(
            "zoo_prefix_hit_tokens", "Tokens of prompts that the prefix cache knew.", registry=registry
        )
        self.generated_tokens = Counter("zoo_generated_tokens", "Tokens of answers.", registry=registry)
        self.step_failures = Counter("zoo_step_failures", "Steps in which the model raised.", registry=registry)
        self.first_token = Histogram(
            "zoo_time_to_first_token_seconds", "From the queue to the first token.", buckets=_SECONDS, registry=registry
        )
        self.inter_token = Histogram(
            "zoo_inter_token_latency_seconds", "Between tokens of one answer.", buckets=_SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "zoo_batch_sequences", "Sequences that got a token in a step.", buckets=_SIZES, registry=registry
        )
        self.batch_tokens = Histogram("zoo_batch_tokens", "Tokens of a step.", buckets=_SIZES, registry=registry)
        self._running = Gauge("zoo_running_sequences", "Sequences that run.", registry=registry)
        self._waiting = Gauge("zoo_waiting_sequences", "Sequences that wait.", registry=registry)
        self._cache = Gauge(
            "zoo_cache_usage_ratio", "Part of the cache's blocks that sequences own.", registry=registry
        )

    def step(self, sequences: int, tokens: int) -> None:
        """Count one step of the engine."""
        self.generated_tokens.inc(sequences)
        self.batch_size.observe(sequences)
        self.batch_tokens.observe(tokens)

    def queue(self, running: int, waiting: int, used: float) -> None:
        """Note the state of the engine."""
        self._running.set(running)
        self._waiting.set(waiting)
        self._cache.set(used)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)
