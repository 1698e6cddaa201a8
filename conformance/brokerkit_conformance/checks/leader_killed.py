"""The node that leads dies before its followers have what it confirmed."""

from brokerkit.guarantees import FailurePoint
from brokerkit_conformance.checks.registry import check
from brokerkit_conformance.faults import CannotInduce
from brokerkit_conformance.story import WORK, Story


@check(
    point=FailurePoint.LEADER_KILLED,
    asked="Of three nodes the followers are stopped, the leader goes on alone and is killed, the followers continue: "
    "is anything lost that had been confirmed?",
    varies="producer",
    exclusive=True,
    trials=1,
)
def leader_killed(story: Story) -> None:
    story.need_broker_process(nodes=3)
    story.declare()
    producer = story.producer()
    producer.send(50)
    for _ in story.trials():
        leader = _leader(story)
        followers = [node for node in range(story.target.asked.nodes) if node != leader]
        for node in followers:
            story.broker("pause", node)
        producer.start(300, rate=300)
        story.wait(lambda: False, 1.5)
        story.broker("kill", leader)
        for node in followers:
            story.broker("resume", node)
        producer.finish_sending()
        story.broker("restart", leader)
        producer.send(20)
    producer.close()
    story.drain()


def _leader(story: Story) -> int:
    local = story.target.local
    assert local is not None
    leader = local.leader(story.topic, WORK)
    if leader is None:
        raise CannotInduce("no node of it leads: there is no leader to kill")
    return leader
