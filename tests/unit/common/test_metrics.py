from common.messages.control import Load
from common.metrics import Metrics


def lines(metrics):
    return metrics.render().decode().splitlines()


def test_what_is_counted_is_shown():
    metrics = Metrics()
    metrics.requests.labels("finished").inc()
    metrics.ttft_s.observe(0.2)
    metrics.handoff_bytes.labels("p0", "d0", "tcp").inc(4096)
    metrics.malformed_frames.labels("control").inc(2)
    text = lines(metrics)
    assert 'pdmesh_requests_total{outcome="finished"} 1.0' in text
    assert 'pdmesh_ttft_seconds_bucket{le="0.1"} 0.0' in text
    assert 'pdmesh_ttft_seconds_bucket{le="0.25"} 1.0' in text
    assert 'pdmesh_handoff_bytes_total{backend="tcp",decode="d0",prefill="p0"} 4096.0' in text
    assert 'pdmesh_malformed_frames_total{channel="control"} 2.0' in text


def test_two_processes_worth_of_metrics_are_apart():
    one, other = Metrics(), Metrics()
    one.queued.set(3)
    assert "pdmesh_requests_queued 3.0" in lines(one)
    assert "pdmesh_requests_queued 0.0" in lines(other)


def test_the_load_of_an_instance_comes_and_goes():
    metrics = Metrics()
    metrics.load_reported("d0", Load(blocks_used=7, tickets=1))
    metrics.load_reported("d1", Load(blocks_used=8))
    assert 'pdmesh_instance_blocks_used{instance="d0"} 7.0' in lines(metrics)
    assert 'pdmesh_instance_tickets{instance="d0"} 1.0' in lines(metrics)
    metrics.instance_lost("d0")
    metrics.instance_lost("never seen")
    assert not [line for line in lines(metrics) if '"d0"' in line]
    assert 'pdmesh_instance_blocks_used{instance="d1"} 8.0' in lines(metrics)
