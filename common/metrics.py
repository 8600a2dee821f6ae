"""The metrics of one process, in a registry of its own, made by its composition root."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from common.messages.control import LinkFigures, Load

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""The media type of what `render` gives."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.0)
_HAND_OFF = ("prefill", "decode", "backend")
_STAGE_SECONDS = (0.001, 0.0025, *_SECONDS)
_RATIOS = (0.1, 0.2, 0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 5.0, 10.0)


class Metrics:
    """Counters, gauges and histograms; names end in their unit. Owned by one process, used from any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.ttft_s = Histogram(
            "pdmesh_ttft_seconds", "From a request's arrival to its first token.", registry=registry, buckets=_SECONDS
        )
        self.tbt_s = Histogram(
            "pdmesh_tbt_seconds", "Between successive tokens of a request.", registry=registry, buckets=_GAP_SECONDS
        )
        self.e2e_s = Histogram(
            "pdmesh_e2e_seconds", "From a request's arrival to its end.", registry=registry, buckets=_SECONDS
        )
        self.prediction_ratio = Histogram(
            "pdmesh_placement_prediction_ratio",
            "Predicted over real time from placement to first token; of traced requests, under policies that predict.",
            registry=registry,
            buckets=_RATIOS,
        )
        self.stage_s = Histogram(
            "pdmesh_request_stage_seconds",
            "What each stage of a traced request took, told at its end.",
            ["stage"],
            registry=registry,
            buckets=_STAGE_SECONDS,
        )
        self.queued = Gauge("pdmesh_requests_queued", "Requests that wait for a place.", registry=registry)
        self.running = Gauge("pdmesh_requests_running", "Requests placed on instances.", registry=registry)
        self.requests = Counter(
            "pdmesh_requests",
            "Requests ended, by outcome: finished, or a kind of failure.",
            ["outcome"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "pdmesh_prompt_tokens", "Prompt tokens of requests that reached the mesh.", registry=registry
        )
        self.cached_tokens = Counter(
            "pdmesh_cached_tokens", "Prompt tokens whose KV was there from earlier requests.", registry=registry
        )
        self.output_tokens = Counter("pdmesh_output_tokens", "Tokens sent to clients.", registry=registry)
        self.handoff_bytes = Counter(
            "pdmesh_handoff_bytes", "Payload bytes of KV handed off.", _HAND_OFF, registry=registry
        )
        self.handoff_s = Histogram(
            "pdmesh_handoff_seconds",
            "Duration of a hand-off of KV, from D's connection to P.",
            _HAND_OFF,
            registry=registry,
            buckets=_SECONDS,
        )
        self.link_fallbacks = Counter(
            "pdmesh_link_fallbacks", "Backends that both ends have and that did not work.", registry=registry
        )
        self._link_rate = Gauge(
            "pdmesh_link_bytes_per_second",
            "Payload bandwidth that the self-test of a link measured.",
            ["prefill", "decode", "backend"],
            registry=registry,
        )
        self._link_round_trip = Gauge(
            "pdmesh_link_round_trip_seconds",
            "Round trip that the self-test of a link measured.",
            ["prefill", "decode", "backend"],
            registry=registry,
        )
        self.handoff_failures = Counter(
            "pdmesh_handoff_failures", "Hand-offs that failed.", ["prefill", "decode"], registry=registry
        )
        self.malformed_frames = Counter(
            "pdmesh_malformed_frames", "Frames that could not be read, by channel.", ["channel"], registry=registry
        )
        self.undeliverable_messages = Counter(
            "pdmesh_undeliverable_messages",
            "Messages dropped because the peer was gone or its queue full, by channel.",
            ["channel"],
            registry=registry,
        )
        self.refused = Counter(
            "pdmesh_control_refused", "Connections and messages of workers refused for their key.", registry=registry
        )
        self.loop_lag_p99_s = Gauge(
            "pdmesh_loop_lag_p99_seconds", "How late the gateway's event loop was lately: P99.", registry=registry
        )
        self.loop_lag_max_s = Gauge(
            "pdmesh_loop_lag_max_seconds", "How late the gateway's event loop was lately: most.", registry=registry
        )
        self._loads = {
            field: Gauge(f"pdmesh_instance_{field}", f"{field} of an instance.", ["instance"], registry=registry)
            for field in Load.__struct_fields__
        }
        self._kv_use = Gauge(
            "pdmesh_instance_kv_use_ratio", "Used of an instance's KV blocks.", ["instance"], registry=registry
        )

    def load_reported(self, instance: str, load: Load) -> None:
        """Show what `instance` holds."""
        for field, gauge in self._loads.items():
            gauge.labels(instance).set(getattr(load, field))
        if load.blocks_total:
            self._kv_use.labels(instance).set(load.blocks_used / load.blocks_total)

    def link_measured(self, prefill: str, decode: str, figures: LinkFigures) -> None:
        """Show what one backend between two instances reaches."""
        self._link_rate.labels(prefill, decode, figures.backend).set(figures.bytes_per_s)
        self._link_round_trip.labels(prefill, decode, figures.backend).set(figures.round_trip_s)

    def instance_lost(self, instance: str) -> None:
        """Show `instance` no more; does nothing for one that never reported."""
        for gauge in (*self._loads.values(), self._kv_use):
            gauge.remove_by_labels({"instance": instance})
        for gauge in (self._link_rate, self._link_round_trip):
            gauge.remove_by_labels({"prefill": instance})
            gauge.remove_by_labels({"decode": instance})

    def render(self) -> bytes:
        """The text exposition of everything, of type CONTENT_TYPE."""
        return generate_latest(self.registry)
