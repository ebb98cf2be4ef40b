"""Who drives, what both execute, and where they part, on a toy whose errors are known."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from rewards.errors import UserError
from rl.play.controls import Message
from rl.play.panes import HAND, SHOWN, SIZE, check_shown, png, shown_image
from rl.play.session import POLICY_STEPS, Session
from rl.play.twin import SETTLING, recorded_starts, usual_error
from tests.rl.play.toy import CHUNK, DRIFT, GOAL, STEP, TASKS, ToySim, ToyWorld, make_session
from world_model.data.episodes import Episode
from world_model.spec import Feature, Spec

UP, NOTHING = Message(held=(0.0, 0.0, 1.0, 0.0)), Message(held=(0.0,) * 4)


def drive(session: Session, n: int) -> None:
    """Hold `up` for n chunks."""
    session.handle(UP)
    for _ in range(n):
        assert session.tick()
    session.handle(NOTHING)


def hands(session: Session) -> dict[str, list[float]]:
    return session.status()["hands"]


def test_time_stands_still_while_nobody_drives() -> None:
    session = make_session()
    assert not session.tick() and session.status()["chunk"] == 0


def test_keys_move_both_hands_alike() -> None:
    session = make_session(seed=3)
    drive(session, 2)
    high = 0.2 + 2 * CHUNK * STEP * 0.5
    assert hands(session) == {place: pytest.approx([0.03, 0.6, high], abs=1e-4) for place in ("dream", "sim")}
    assert session.status()["seed"] == 3 and not session.tick()


def test_the_simulator_settles_before_the_dream_begins() -> None:
    session = make_session()
    assert int(session.twin.eye.elapsed) == SETTLING * CHUNK and session.status()["measured"] is None


def test_errors_are_in_units_of_the_usual_one() -> None:
    """The dream drifts by the usual error in each chunk, and expects twice as much."""
    session = make_session()
    drive(session, 4)
    status = session.status()
    assert status["curve"] == [pytest.approx([2 * i, i], abs=1e-3) for i in (1, 2, 3, 4)]
    assert (status["expected"], status["measured"]) == pytest.approx((8, 4), abs=1e-3)
    assert status["parted"] == 3  # the first chunk whose measured error exceeds 2


def test_rewind_goes_back_to_before_they_parted() -> None:
    session = make_session()
    drive(session, 2)
    before = hands(session)
    session.handle(Message(press="rewind"))
    assert "still agree" in session.notice and session.status()["chunk"] == 2
    drive(session, 4)
    assert hands(session)["sim"][2] == pytest.approx(before["sim"][2] + 4 * CHUNK * STEP * 0.5, abs=1e-3)
    session.handle(Message(press="rewind"))
    assert session.status()["chunk"] == 2 and hands(session) == before and session.parted is None
    assert int(session.twin.eye.elapsed) == (SETTLING + 2) * CHUNK
    drive(session, 1)  # what follows is what followed the first time
    assert session.status()["curve"][-1] == pytest.approx([6, 3], abs=1e-3)


def test_the_dream_begins_anew_from_the_simulator() -> None:
    session = make_session()
    drive(session, 4)
    session.handle(Message(press="redream"))
    status = session.status()
    assert status["expected"] is None and status["chunk"] == 4 and hands(session)["dream"] == hands(session)["sim"]
    drive(session, 1)
    assert session.status()["curve"][-1] == pytest.approx([2, 1], abs=1e-3)


def test_the_policy_solves_the_task_and_hands_back() -> None:
    session = make_session(seed=0)
    session.handle(Message(press="policy"))
    n = 0
    while session.tick():
        n += 1
    assert n == int(GOAL / STEP) // CHUNK + 1 == 8
    assert session.status()["solved"] == {"dream": True, "sim": True} and session.status()["driver"] == "you"
    assert "solved" in session.notice and session.controls.grip == -1.0


def test_a_key_takes_over_from_the_policy_and_a_press_too() -> None:
    session = make_session()
    session.handle(Message(press="policy"))
    session.tick()
    assert session.status()["driver"] == "policy"
    session.handle(NOTHING)  # a key that was let go is no takeover
    assert session.status()["driver"] == "policy"
    session.handle(UP)
    assert session.status()["driver"] == "you"
    session.handle(Message(press="policy"))
    session.handle(Message(press="policy"))
    assert session.status()["driver"] == "you"


def test_a_tap_before_the_policy_drives_is_no_takeover() -> None:
    session = make_session()
    for message in (UP, Message(press="policy"), NOTHING):
        session.handle(message)
    assert session.status()["driver"] == "policy" and session.tick()


def test_the_policy_gives_up_after_an_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.rl.play.toy.GOAL", 1e9)
    session = make_session()
    session.handle(Message(press="policy"))
    n = 0
    while session.tick():
        n += 1
    assert n == -(-POLICY_STEPS // CHUNK) and "not solved" in session.notice


def test_a_new_start_and_another_task() -> None:
    session = make_session(seed=3)
    drive(session, 2)
    session.handle(Message(press="restart"))
    assert (session.status()["seed"], session.status()["chunk"]) == (4, 0)
    assert hands(session)["sim"][0] == pytest.approx(0.04)
    first = session.twin.sim
    session.handle(Message(task="rest"))
    assert session.status()["task"] == "rest" and isinstance(first, ToySim) and first.closed
    assert int(session.twin.dream.task) == 1


def test_the_dream_alone() -> None:
    """It begins in recorded states, and the expected error says where to go back to."""
    session = make_session(sim=False, seed=4)
    drive(session, 3)
    status = session.status()
    assert status["curve"] == [(pytest.approx(2 * i), None) for i in (1, 2, 3)] and status["parted"] == 2
    assert list(status["hands"]) == ["dream"] and list(status["solved"]) == ["dream"]
    session.handle(Message(press="rewind"))
    assert session.status()["chunk"] == 1
    session.handle(Message(press="redream"))
    assert "no simulator" in session.notice
    session.handle(Message(task="rest"))
    assert hands(session)["dream"][0] == pytest.approx(0.1)
    session.handle(Message(press="policy"))
    while session.tick():
        pass
    assert session.status()["solved"] == {"dream": True}


def test_a_checkpoint_that_only_predicts_keeps_the_person_driving() -> None:
    session = make_session(acts=False)
    session.handle(Message(press="policy"))
    assert session.status()["driver"] == "you" and "only predicts" in session.notice and not session.about()["can_act"]


def test_a_sentence_is_told_to_the_model_and_the_policy_is_made_anew() -> None:
    told: list[tuple[str, str]] = []

    def tell(task: str, sentence: str) -> str:
        if not sentence:
            raise UserError("no sentence")
        told.append((task, sentence))
        return "heard"

    session = make_session()
    session.handle(Message(instruction="go"))
    assert "reads no instruction" in session.notice and not session.about()["reads_sentences"]
    session.tell = tell
    before = session.policy
    session.handle(Message(instruction=""))
    assert session.notice == "no sentence" and session.policy is before
    session.handle(Message(instruction="go"))
    assert told == [("reach", "go")] and session.notice == "heard" and session.policy is not before
    assert session.about()["reads_sentences"] and session.status()["instruction"] == "reach"


def test_play_ends_after_its_longest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.play.session.MOST_CHUNKS", 3)
    session = make_session()
    drive(session, 3)
    session.handle(UP)
    assert not session.tick() and not session.is_driven and "Time is up" in session.notice
    session.handle(Message(press="restart"))
    drive(session, 1)


def test_a_frame_holds_status_and_images() -> None:
    session = make_session()
    drive(session, 1)
    frame = session.frame(12.0)
    (length,) = struct.unpack(">I", frame[:4])
    status = json.loads(frame[4 : 4 + length])
    assert status["frames_per_s"] == 12.0 and sum(status["sizes"]) == len(frame) - 4 - length
    first = frame[4 + length :][: status["sizes"][0]]
    assert first.startswith(b"\x89PNG") and len(frame) < 200_000


def test_the_dream_of_a_state_is_drawn_over_the_first_image() -> None:
    session = make_session()
    for n in range(2):
        image = session.panes.dream()
        assert image.shape == (SIZE, SIZE, 3)
        color = tuple(int(HAND[i : i + 2], 16) for i in (1, 3, 5))
        assert (image == np.array(color)).all(-1).sum() > 100, n
        drive(session, 1)


def test_images_are_lossless() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(png(pixels)))) == pixels).all()


def test_models_that_cannot_be_shown_are_refused() -> None:
    model = ToyWorld()
    check_shown(model, "toy", has_sim=True)
    assert list(shown_image(model)) == [SHOWN]
    with pytest.raises(UserError, match=r"toy: it has no images, and place=dream has no simulator.*pixels-tuned"):
        check_shown(model, "toy", has_sim=False)
    model.spec = Spec({"state": Feature((2,))}, (-1.0,), (1.0,), TASKS, control_hz=10.0)
    with pytest.raises(UserError, match=r"neither images nor the positions hand_pos and object_pos.*pixels-tuned"):
        check_shown(model, "toy", has_sim=True)


def test_the_usual_error_is_measured_on_recorded_episodes() -> None:
    """Each of four chunks drifts by one more centimetre, so the lower median is 2 cm."""
    state = torch.zeros(CHUNK * 5 + 1, 6)
    episode = Episode(
        {"state": state}, torch.zeros(CHUNK * 5, 4), torch.zeros(CHUNK * 5, dtype=torch.bool), "reach", "expert", seed=0
    )
    assert usual_error(ToyWorld(), [episode]) == pytest.approx(2 * DRIFT)
    episode.obs["state"][SETTLING * CHUNK] = 1.0
    assert (recorded_starts(ToyWorld(), [episode]).context["state"] == 1.0).all()
