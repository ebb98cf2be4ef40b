"""What the robot is asked to do in each Meta-World task, in several wordings.

They are stored with episodes and given to policies that read language. `env.instructions` replaces the instruction of a
task, for example by the sentence that a policy was trained on: a policy often knows no others. Models that read
sentences train on all of `training`; the sentences in `held_out` are for evaluation alone (docs/instructions.md).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sentences:
    """One task in words. `verb` and `object` say what is done to what; they choose pairs to hold out of training."""

    verb: str
    object: str
    training: tuple[str, ...]  # the first one is the instruction
    held_out: tuple[str, ...]


SENTENCES = {
    "assembly": Sentences(
        "put",
        "ring",
        (
            "Pick up the ring by its handle and put it over the peg.",
            "Put the ring on the peg.",
            "Lift the ring and place it around the peg.",
        ),
        ("Grab the ring and slip it over the peg.",),
    ),
    "basketball": Sentences(
        "drop",
        "ball",
        (
            "Pick up the ball and drop it through the hoop.",
            "Drop the ball into the basket.",
            "Throw the ball through the hoop.",
        ),
        ("Score a basket with the ball.",),
    ),
    "bin-picking": Sentences(
        "move",
        "cube",
        (
            "Take the cube out of one bin and put it into the other bin.",
            "Move the cube to the other bin.",
            "Pick the cube from its bin and drop it into the other bin.",
        ),
        ("Carry the cube over into the second bin.",),
    ),
    "box-close": Sentences(
        "close",
        "box",
        (
            "Pick up the lid and put it on the box.",
            "Close the box with its lid.",
            "Cover the box with the lid.",
        ),
        ("Shut the box by putting its lid on.",),
    ),
    "button-press": Sentences(
        "press",
        "button",
        (
            "Press the button on the front of the box.",
            "Push the button in from the front.",
            "Press the front button.",
        ),
        ("Hit the button at the front.",),
    ),
    "button-press-topdown": Sentences(
        "press",
        "top button",
        (
            "Press the button on the top of the box.",
            "Push the button down from above.",
            "Press the top button.",
        ),
        ("Hit the button on top from above.",),
    ),
    "button-press-topdown-wall": Sentences(
        "press",
        "top button behind the wall",
        (
            "Reach over the wall and press the button on the top of the box.",
            "Go over the wall and push the button down from above.",
            "Press the top button behind the wall.",
        ),
        ("Get past the wall and hit the button on top.",),
    ),
    "button-press-wall": Sentences(
        "press",
        "button behind the wall",
        (
            "Reach around the wall and press the button on the front of the box.",
            "Go past the wall and push the button in from the front.",
            "Press the front button behind the wall.",
        ),
        ("Get around the wall and hit the button at the front.",),
    ),
    "coffee-button": Sentences(
        "press",
        "coffee machine",
        (
            "Press the button of the coffee machine.",
            "Push the button on the coffee machine.",
            "Switch the coffee machine on.",
        ),
        ("Start the coffee machine with its button.",),
    ),
    "coffee-pull": Sentences(
        "pull",
        "mug",
        (
            "Pull the mug away from the coffee machine to the goal.",
            "Pull the mug to the goal.",
            "Take the mug away from the coffee machine.",
        ),
        ("Drag the coffee mug back to the goal.",),
    ),
    "coffee-push": Sentences(
        "push",
        "mug",
        (
            "Push the mug under the coffee machine.",
            "Push the mug to the coffee machine.",
            "Slide the mug below the coffee machine.",
        ),
        ("Move the coffee mug forward under the machine.",),
    ),
    "dial-turn": Sentences(
        "turn",
        "dial",
        ("Turn the dial around.", "Rotate the dial.", "Turn the knob of the dial."),
        ("Give the dial a turn.",),
    ),
    "disassemble": Sentences(
        "lift",
        "ring",
        (
            "Lift the ring off the peg.",
            "Take the ring off the peg.",
            "Pick up the ring by its handle and lift it off the peg.",
        ),
        ("Remove the ring from the peg.",),
    ),
    "door-close": Sentences(
        "close",
        "door",
        ("Push the open door shut.", "Close the door.", "Push the door closed."),
        ("Shut the door.",),
    ),
    "door-lock": Sentences(
        "lock",
        "door",
        ("Turn the lock of the door to lock it.", "Lock the door.", "Turn the lock down to lock the door."),
        ("Put the lock on the door.",),
    ),
    "door-open": Sentences(
        "open",
        "door",
        ("Pull the door open by its handle.", "Open the door.", "Pull the handle of the door to open it."),
        ("Swing the door open.",),
    ),
    "door-unlock": Sentences(
        "unlock",
        "door",
        ("Turn the lock of the door to unlock it.", "Unlock the door.", "Turn the lock aside to unlock the door."),
        ("Undo the lock of the door.",),
    ),
    "drawer-close": Sentences(
        "close",
        "drawer",
        ("Push the drawer shut.", "Close the drawer.", "Push the open drawer in until it is closed."),
        ("Shut the drawer.", "Slide the drawer back in."),
    ),
    "drawer-open": Sentences(
        "open",
        "drawer",
        ("Pull the drawer open by its handle.", "Open the drawer.", "Pull the closed drawer out by its handle."),
        ("Slide the drawer open.", "Get the drawer out."),
    ),
    "faucet-close": Sentences(
        "close",
        "faucet",
        ("Turn the handle of the faucet to close it.", "Close the faucet.", "Turn the faucet off."),
        ("Shut the faucet.",),
    ),
    "faucet-open": Sentences(
        "open",
        "faucet",
        ("Turn the handle of the faucet to open it.", "Open the faucet.", "Turn the faucet on."),
        ("Let the faucet run by its handle.",),
    ),
    "hammer": Sentences(
        "hammer",
        "nail",
        (
            "Pick up the hammer and drive the nail into the box.",
            "Hammer the nail in.",
            "Hit the nail with the hammer.",
        ),
        ("Take the hammer and knock the nail into the box.",),
    ),
    "hand-insert": Sentences(
        "insert",
        "block",
        (
            "Grip the block and lower it into the hole in the table.",
            "Insert the block into the hole.",
            "Put the block into the hole by hand.",
        ),
        ("Take the block down into the hole of the table.",),
    ),
    "handle-press": Sentences(
        "press",
        "handle",
        ("Press the handle down from the front.", "Press the handle down.", "Push the front handle down."),
        ("Move the handle in front of you downward.",),
    ),
    "handle-press-side": Sentences(
        "press",
        "side handle",
        ("Press the handle at the side down.", "Press the side handle down.", "Push the handle down from the side."),
        ("Move the handle at the side downward.",),
    ),
    "handle-pull": Sentences(
        "pull",
        "handle",
        ("Pull the handle up from the front.", "Pull the handle up.", "Lift the front handle."),
        ("Move the handle in front of you upward.",),
    ),
    "handle-pull-side": Sentences(
        "pull",
        "side handle",
        ("Pull the handle at the side up.", "Pull the side handle up.", "Lift the handle from the side."),
        ("Move the handle at the side upward.",),
    ),
    "lever-pull": Sentences(
        "pull",
        "lever",
        ("Push the lever up from below.", "Pull the lever up.", "Lift the lever."),
        ("Raise the lever.",),
    ),
    "peg-insert-side": Sentences(
        "insert",
        "peg",
        (
            "Pick up the peg and insert it sideways into the hole of the box.",
            "Insert the peg into the box from the side.",
            "Put the peg into the hole in the side of the box.",
        ),
        ("Plug the peg into the box sideways.",),
    ),
    "peg-unplug-side": Sentences(
        "unplug",
        "peg",
        (
            "Pull the peg sideways out of the hole of the box.",
            "Unplug the peg from the side.",
            "Take the peg out of the box.",
        ),
        ("Remove the peg from its hole, sideways.",),
    ),
    "pick-out-of-hole": Sentences(
        "pick",
        "puck in the hole",
        (
            "Lift the puck out of the hole and bring it to the goal.",
            "Pick the puck out of the hole.",
            "Take the puck from the hole to the goal.",
        ),
        ("Get the puck out of its hole and carry it to the goal.",),
    ),
    "pick-place": Sentences(
        "pick",
        "puck",
        (
            "Pick up the puck and bring it to the goal.",
            "Pick the puck up and place it at the goal.",
            "Lift the puck to the goal.",
        ),
        ("Grab the puck and carry it to the goal.",),
    ),
    "pick-place-wall": Sentences(
        "pick",
        "puck behind the wall",
        (
            "Pick up the puck, lift it over the wall and bring it to the goal.",
            "Pick the puck up and place it at the goal behind the wall.",
            "Lift the puck over the wall to the goal.",
        ),
        ("Grab the puck and carry it across the wall.",),
    ),
    "plate-slide": Sentences(
        "slide in",
        "plate",
        (
            "Slide the plate forward into the cabinet.",
            "Slide the plate into the cabinet.",
            "Push the plate forward into the cabinet.",
        ),
        ("Get the plate into the cabinet in front of you.",),
    ),
    "plate-slide-back": Sentences(
        "slide out",
        "plate",
        (
            "Slide the plate backward out of the cabinet.",
            "Slide the plate out of the cabinet.",
            "Pull the plate back out of the cabinet.",
        ),
        ("Get the plate back from the cabinet in front of you.",),
    ),
    "plate-slide-back-side": Sentences(
        "slide out",
        "plate at the side",
        (
            "Slide the plate sideways out of the cabinet.",
            "Slide the plate out of the cabinet at the side.",
            "Pull the plate sideways from the cabinet.",
        ),
        ("Get the plate back from the cabinet at the side.",),
    ),
    "plate-slide-side": Sentences(
        "slide in",
        "plate at the side",
        (
            "Slide the plate sideways into the cabinet.",
            "Slide the plate into the cabinet at the side.",
            "Push the plate sideways into the cabinet.",
        ),
        ("Get the plate into the cabinet at the side.",),
    ),
    "push": Sentences(
        "push",
        "puck",
        ("Push the puck to the goal.", "Push the puck forward to the goal.", "Slide the puck to the goal."),
        ("Shove the puck to the goal.",),
    ),
    "push-back": Sentences(
        "pull",
        "puck",
        ("Pull the puck back to the goal.", "Push the puck backward to the goal.", "Drag the puck back to the goal."),
        ("Bring the puck back toward you, to the goal.",),
    ),
    "push-wall": Sentences(
        "push",
        "puck behind the wall",
        (
            "Push the puck around the wall to the goal.",
            "Push the puck past the wall to the goal.",
            "Slide the puck around the wall.",
        ),
        ("Shove the puck around the wall to the goal.",),
    ),
    "reach": Sentences(
        "reach",
        "goal",
        ("Move the hand to the goal.", "Reach the goal.", "Bring the gripper to the goal."),
        ("Go to the goal with the hand.",),
    ),
    "reach-wall": Sentences(
        "reach",
        "goal behind the wall",
        (
            "Move the hand over the wall to the goal.",
            "Reach the goal behind the wall.",
            "Bring the gripper over the wall to the goal.",
        ),
        ("Go past the wall to the goal with the hand.",),
    ),
    "shelf-place": Sentences(
        "put",
        "block",
        (
            "Pick up the block and put it on the shelf.",
            "Put the block on the shelf.",
            "Place the block onto the shelf.",
        ),
        ("Set the block down on the shelf.",),
    ),
    "soccer": Sentences(
        "push",
        "ball",
        ("Push the ball into the net.", "Push the ball into the goal.", "Kick the ball into the net."),
        ("Shoot the ball into the net.",),
    ),
    "stick-pull": Sentences(
        "pull",
        "thermos",
        (
            "Put the stick into the handle of the thermos and pull the thermos to the goal.",
            "Pull the thermos to the goal with the stick.",
            "Take the stick and pull the thermos back.",
        ),
        ("Use the stick to drag the thermos to the goal.",),
    ),
    "stick-push": Sentences(
        "push",
        "thermos",
        (
            "Pick up the stick and push the thermos to the goal with it.",
            "Push the thermos to the goal with the stick.",
            "Take the stick and push the thermos away.",
        ),
        ("Use the stick to shove the thermos to the goal.",),
    ),
    "sweep": Sentences(
        "sweep",
        "cube",
        ("Sweep the cube sideways off the table.", "Sweep the cube off the table.", "Push the cube off the table."),
        ("Wipe the cube from the table.",),
    ),
    "sweep-into": Sentences(
        "sweep",
        "cube at the hole",
        ("Sweep the cube into the hole in the table.", "Sweep the cube into the hole.", "Push the cube into the hole."),
        ("Wipe the cube into the hole of the table.",),
    ),
    "window-close": Sentences(
        "close",
        "window",
        ("Slide the window shut by its handle.", "Close the window.", "Push the window closed by its handle."),
        ("Shut the window.", "Slide the window back."),
    ),
    "window-open": Sentences(
        "open",
        "window",
        ("Slide the window open by its handle.", "Open the window.", "Push the window open by its handle."),
        ("Get the window open.", "Slide the window aside to open it."),
    ),
}
"""Task -> its sentences."""

INSTRUCTIONS = {task: sentences.training[0] for task, sentences in SENTENCES.items()}
"""Task -> instruction."""

WORDINGS = {task: sentences.training[1:] for task, sentences in SENTENCES.items()}
"""Task -> further sentences for training."""
