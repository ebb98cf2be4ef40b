"""The page in a real browser: keys move both hands, the policy solves a task, the frame changes its colour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.browser import Tab, browser, installed
from benchmarks.play import played
from tests.rl.play.toy import playing

pytestmark = pytest.mark.skipif(installed() is None, reason="no Chromium here: apt-get install chromium")

TONE = "getComputedStyle($('dream').querySelector('.frame')).borderTopColor"

GAMEPAD = """
window.pad = {mapping: "standard", axes: [0, 0, 0, 0.8], buttons: Array(16).fill({pressed: false})};
navigator.getGamepads = () => [pad];
dispatchEvent(new Event("gamepadconnected"));
"""
"""A gamepad whose right stick is held down."""


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with browser(tmp_path / "profile") as found:
        yield found


def test_the_page_drives_the_toy(tab: Tab) -> None:
    with playing() as (hub, session):
        tab.open(hub.address)
        tab.until("latest !== null && drives")
        assert tab.js("[...$('task').options].map((o) => o.value)") == ["reach", "rest"]
        # 1. A key that is held moves the hand in both, and time stands still when it is let go.
        before, early = tab.js("latest.hands"), tab.js(TONE)
        tab.key("keyDown", "KeyR")
        tab.until("latest.chunk >= 4")
        tab.key("keyUp", "KeyR")
        tab.until("latest.frames_per_s === null")
        after = tab.js("latest.hands")
        assert all(after[place][2] > before[place][2] + 0.03 for place in ("dream", "sim"))
        # 2. The toy expects more error with each chunk: the frame turns red, and they have parted.
        tab.until(f"{TONE} !== {early!r}")
        assert "usual error" in tab.js("$('sure').textContent") and tab.js("latest.parted") == 3
        assert tab.js("document.querySelectorAll('#curve .parted').length") == 1
        # 3. Back, to another view, to another task, and the policy.
        tab.press("KeyB")
        tab.until("latest.chunk === 2 && latest.parted === null")
        tab.press("KeyV")
        tab.until("getComputedStyle($('sim')).display === 'none'")
        tab.js("$('task').value = 'rest', $('task').dispatchEvent(new Event('change'))")
        tab.until("latest.task === 'rest' && latest.chunk === 0")
        tab.press("KeyP")
        tab.until("latest.solved.dream && latest.solved.sim && latest.driver === 'you'")
        assert tab.js("[...document.querySelectorAll('.solved')].every((mark) => !mark.hidden)")
        # 4. A button of the page, as a finger presses it; a window that loses the focus lets go.
        tab.js("document.querySelector('[data-axis=up].u').dispatchEvent(new KeyboardEvent('keydown', {key: ' '}))")
        tab.until("latest.frames_per_s !== null")
        tab.js("dispatchEvent(new Event('blur'))")
        tab.until("latest.frames_per_s === null")
        # 5. An instruction is typed, and its letters drive nothing.
        tab.js("$('instruction').focus()")
        tab.press("KeyN")
        tab.js("$('instruction').value = 'Rest <b>now</b>.'")
        tab.js("$('instruction').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter'}))")
        tab.until("$('notice').textContent === 'rest: Rest <b>now</b>.'")
        assert tab.js("latest.seed") == 3 and tab.js("document.activeElement === document.body")
        # 6. A gamepad: its stick moves until it rests.
        tab.js(GAMEPAD)
        tab.until("latest.frames_per_s !== null")
        tab.js("pad.axes[3] = 0")
        tab.until("latest.frames_per_s === null")
        assert tab.js("document.documentElement.scrollWidth <= innerWidth")
        assert tab.errors == []
        assert not session.is_driven


def test_a_page_of_another_origin_and_one_without_token_cannot_connect(tab: Tab) -> None:
    """The browser itself sends the origin, which a page cannot choose."""
    tried = (
        "new Promise((told) => {{ const s = new WebSocket({url!r}); s.onopen = () => told('open'); "
        "s.onclose = () => told('refused') }})"
    )
    with playing() as (hub, _):
        live = hub.address.replace("http", "ws").replace("/?", "/live?")
        tab.open("data:text/html,foreign")
        assert tab.js(tried.format(url=live)) == "refused"
        tab.open(hub.address.partition("?")[0])
        assert "the token is missing" in tab.js("document.body.innerText")
        tab.open(hub.address)
        assert tab.js(tried.format(url=live.partition("?")[0])) == "refused"
        assert tab.js(tried.format(url=live)) == "open"


@pytest.mark.slow
def test_a_person_and_the_policy_drive_the_built_in_model(tab: Tab) -> None:
    """The built-in policy solved faucet-open in 100 of 100 episodes when it was made."""
    with played("metaworld-pixels-tuned", "env.tasks=faucet-open,drawer-open") as (address, _):
        tab.open(address)
        tab.until("latest !== null && drives")
        before = tab.js("latest.hands")
        tab.key("keyDown", "KeyW")
        tab.until("latest.chunk >= 3")
        tab.key("keyUp", "KeyW")
        tab.until("latest.frames_per_s === null")
        after = tab.js("latest.hands")
        for place in ("dream", "sim"):  # away from the camera is along -x and +y
            assert after[place][0] < before[place][0] - 0.03 and after[place][1] > before[place][1] + 0.01
        tab.press("KeyN")
        tab.until("latest.chunk === 0")
        tab.press("KeyP")
        tab.until("latest.chunk >= 1")
        tones = {tab.js(TONE)}
        tab.until("latest.driver === 'you'")
        assert tab.js("latest.solved") == {"dream": True, "sim": True}
        # Far beyond the task the dream no longer knows what happens, and says so.
        tab.key("keyDown", "KeyD")
        tab.until("latest.expected > 3", seconds=240)
        tab.key("keyUp", "KeyD")
        tab.until("latest.frames_per_s === null")
        tones.add(tab.js(TONE))
        assert len(tones) == 2 and tab.js("latest.parted") is not None
        chunk = tab.js("latest.parted") - 1
        tab.press("KeyB")
        tab.until(f"latest.chunk === {chunk} && latest.parted === null")
        assert tab.errors == []
