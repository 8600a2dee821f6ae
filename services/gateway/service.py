"""The gateway, put together; `run_gateway` is the composition root of its process."""

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Protocol

import msgspec
from aiohttp import web

from common.bus.codecs import from_worker_codec, to_worker_codec
from common.bus.drops import Drops
from common.bus.gate import Gate
from common.bus.server import BusServer
from common.clock import Clock, SystemClock
from common.config.addresses import format_host_port, parse_http
from common.config.types import MeshConfig, TracingConfig
from common.entropy import Entropy
from common.errors import ConfigError
from common.ids import Generation, RequestId
from common.lasting_objects import keep_what_is_there
from common.loop_lag import LoopLag
from common.messages.control import FromWorker, Rejected, ToWorker
from common.metrics import CONTENT_TYPE, Metrics
from common.signals import stop_on_signals
from services.gateway.dashboard.routes import DashboardRoutes
from services.gateway.dashboard.source import DashboardSource
from services.gateway.http.key_file import KeyFile
from services.gateway.http.open_files import allow_connections
from services.gateway.http.responses import json_response
from services.gateway.http.server import ConnectionLimits, build_runner
from services.gateway.lane.text_lane import TextLane
from services.gateway.mesh.shell import TICK_S, MeshShell
from services.gateway.model_facts import context_length_of
from services.gateway.operators.instances import InstanceRoutes
from services.gateway.operators.traces import TraceRoutes
from services.gateway.records.metering import MeteringObserver, StageMeter, WorkerMeter
from services.gateway.records.observer import Observers
from services.gateway.records.settling import Settling
from services.gateway.records.trace_types import RequestTrace
from services.gateway.records.traces import Traces
from services.gateway.routes.app import build_app
from services.gateway.routes.completions import ApiSettings, Minted, ModelCard
from services.scheduling.ledgers.output_lengths import load_predictor
from services.scheduling.lifecycle.lifecycle import Lifecycle, Limits
from services.scheduling.membership.membership import Membership
from services.scheduling.policies.registry import load_policy
from services.text.chat_template import ChatTemplate
from services.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

DRAIN_S = 20.0
"""How long requests in flight may take to end once the gateway has been told to stop."""


class GatewayService:
    """HTTP on one side, the bus on the other. Use: start, then close. `drain` between them ends what runs."""

    def __init__(self, config: MeshConfig, model_folder: Path, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._model_folder = model_folder
        self.metrics = Metrics()
        self._lag = LoopLag(clock)
        self._entropy = Entropy()
        self._stages = StageMeter(self.metrics)
        self._export = _export_of(config.tracing)
        self._opened = AsyncExitStack()
        """What is to be closed, the last first; of a start that failed, too."""

    async def start(self) -> None:
        """Listen for workers and for clients.

        Raises ModelError, ConfigError, BusError, or OSError for an address in use; close it then, too.
        """
        if self._export is not None:
            self._opened.push_async_callback(self._export.close)
        self._bus = self._build_bus()
        self.control = await self._bus.start()
        self._opened.push_async_callback(self._bus.close)
        self.mesh = self._build_mesh()
        self._opened.push_async_callback(self.mesh.close)
        await self.mesh.start()
        self._dashboard = DashboardSource(
            self.mesh,
            self.metrics,
            self._clock,
            model=self._config.model,
            policy=self._config.policy,
            life=self._entropy.hex(4),
        )
        await self._serve_http()
        # Requests end before the connections of their clients, and once more where HTTP could not be served.
        self._opened.push_async_callback(self.mesh.close)
        self._lag.start()
        self._opened.callback(self._lag.stop)
        self._dashboard.history.start()
        self._opened.push_async_callback(self._dashboard.history.close)

    def _build_bus(self) -> BusServer[FromWorker, ToWorker]:
        gateway = self._config.gateway
        malformed, undeliverable = self.metrics.malformed_frames, self.metrics.undeliverable_messages
        drops = Drops(
            self._clock,
            on_malformed=malformed.labels("control").inc,
            on_undeliverable=undeliverable.labels("control").inc,
            on_refused=self.metrics.refused.inc,
        )
        return BusServer(
            gateway.control,
            from_worker_codec(),
            to_worker_codec(),
            drops=drops,
            gate=self._gate(gateway.control_keys),
            refuse=lambda reason: Rejected(reason=reason, fatal=True),
        )

    def _build_mesh(self) -> MeshShell:
        gateway = self._config.gateway
        on_ratio = self.metrics.prediction_ratio.observe
        self._settling = Settling(lambda request: self.traces.trace(request), self._settled)
        self._opened.callback(self._settling.close)
        self.traces = Traces(gateway.traces, self._config.policy, self._clock, on_ratio, self._settling.ended)
        limits = Limits(queue=gateway.queue, prefill_slots=gateway.prefill_slots)
        return MeshShell(
            Lifecycle(
                limits,
                load_policy(self._config.policy, self._config.split),
                load_predictor(self._config.output_lengths),
            ),
            Membership(
                Generation(self._entropy.bits63()),
                heartbeat_s=gateway.heartbeat_s,
                lease_s=gateway.lease_s,
                tick_s=TICK_S,
            ),
            self._bus,
            self._clock,
            WorkerMeter(self.metrics),
            self.traces,
            self._entropy,
            deadline_s=gateway.deadline_s,
            silence_s=gateway.silence_s,
        )

    def _gate(self, keys: str | None) -> Gate | None:
        if keys is None:
            return None
        return Gate(Path(keys), on_withdrawn=lambda instance: self.mesh.key_withdrawn(instance))

    async def _serve_http(self) -> None:
        gateway = self._config.gateway
        tokenizer = Tokenizer.load(self._model_folder)
        template = ChatTemplate.load(self._model_folder, tokenizer.special_tokens, datetime.now)
        self._text = await self._opened.enter_async_context(TextLane(tokenizer, template))
        app = build_app(
            self.mesh,
            self._text,
            ModelCard(self._config.model, _unix_time(), context_length_of(self._model_folder)),
            ApiSettings(
                max_body=gateway.max_body,
                deadline_s=gateway.deadline_s,
                allow_placement_override=gateway.allow_placement_override,
                max_header=gateway.max_header,
                max_prompt=gateway.max_prompt,
                max_streams=gateway.max_streams,
                slow_client_s=gateway.slow_client_s,
            ),
            self._clock,
            self._mint,
            Observers(MeteringObserver(self.metrics), self.traces),
            None if gateway.api_keys is None else KeyFile(Path(gateway.api_keys), self._clock),
        )
        app.router.add_get("/metrics", self._show_metrics)
        app.router.add_get("/links", self._show_links)
        app.add_routes([*InstanceRoutes(self.mesh).routes(), *TraceRoutes(self.traces).routes()])
        app.add_routes(DashboardRoutes(self._dashboard).routes())
        limits = ConnectionLimits(
            connections=allow_connections(gateway.max_connections),
            head_bytes=gateway.max_header,
            unread_s=gateway.slow_client_s,
        )
        self._http = build_runner(app, limits)
        self._opened.push_async_callback(self._http.cleanup)
        await self._http.setup()
        host, port = parse_http(gateway.http)
        await web.TCPSite(self._http, host, port).start()
        host, port = self._http.addresses[0][:2]
        self.url = f"http://{format_host_port(host, port)}"
        _log.info("serving %s at %s, workers join at %s", self._config.model, self.url, self.control)

    async def _show_metrics(self, _: web.Request) -> web.Response:
        holdings, lag = self.mesh.holdings(), self._lag.figures()
        self.metrics.loop_lag_p99_s.set(lag.p99_s)
        self.metrics.loop_lag_max_s.set(lag.max_s)
        self.metrics.queued.set(holdings.queued)
        self.metrics.running.set(holdings.requests)
        return web.Response(body=self.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _show_links(self, _: web.Request) -> web.Response:
        return json_response(msgspec.json.encode({"links": self.mesh.links()}))

    def _settled(self, trace: RequestTrace) -> None:
        self._stages.settled(trace)
        if self._export is not None:
            self._export.settled(trace)

    def _mint(self) -> Minted:
        return Minted(RequestId(f"r-{self._entropy.hex(10)}"), self._entropy.bits63(), _unix_time())

    async def drain(self) -> None:
        """Accept nothing new; ends when every request has ended, or after DRAIN_S."""
        self.mesh.shut_down()
        try:
            await asyncio.wait_for(self.mesh.until_idle(), DRAIN_S)
        except TimeoutError:
            _log.warning("requests are still in flight after %s s; they fail now", DRAIN_S)

    async def close(self) -> None:
        """End everything; requests still in flight fail. Idempotent."""
        await self._opened.aclose()


class _Export(Protocol):
    """Who is told of every request that has ended, and in the end that there are no more."""

    def settled(self, trace: RequestTrace) -> None: ...

    async def close(self) -> None: ...


def _export_of(tracing: TracingConfig) -> _Export | None:
    """What sends traces, where that is wanted. Raises ConfigError without the packages that it takes."""
    if tracing.otlp is None:
        return None
    try:
        from services.gateway.records.open_telemetry import export_to
    except ImportError as error:
        raise ConfigError(
            f"tracing.otlp is {tracing.otlp!r}, and {error.name!r} is not installed: install the extra `tracing` "
            "(pip install -e '.[tracing]'), or write null"
        ) from error
    return export_to(tracing.otlp, tracing.sample, time.time)  # noqa: TID251 - collectors want wall time


def _unix_time() -> int:
    return int(time.time())  # noqa: TID251 - the API shows wall time, and this is a composition root


async def run_gateway(config: MeshConfig, model_folder: Path) -> bool:
    """Serve until SIGTERM or SIGINT, then drain; whether it was SIGINT."""
    stop = stop_on_signals()
    service = GatewayService(config, model_folder, SystemClock())
    try:
        await service.start()
        keep_what_is_there()
        await stop.wait()
        await service.drain()
    finally:
        await service.close()
    return stop.was_interrupt
