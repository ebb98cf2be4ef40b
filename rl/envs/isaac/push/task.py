"""A task: push a puck over a table to a goal, with a finger on two slides; mass, friction and gains are random."""

from __future__ import annotations

from pathlib import Path

import isaaclab.sim as sim_utils
from isaaclab.actuators import ImplicitActuatorCfg
from isaaclab.assets import ArticulationCfg, AssetBaseCfg, RigidObjectCfg
from isaaclab.envs import ManagerBasedRLEnvCfg
from isaaclab.envs import mdp as stock
from isaaclab.managers import (
    EventTermCfg,
    ObservationGroupCfg,
    ObservationTermCfg,
    RewardTermCfg,
    SceneEntityCfg,
    TerminationTermCfg,
)
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sensors import CameraCfg
from isaaclab.utils import configclass
from isaaclab_newton.physics import MJWarpSolverCfg, NewtonCfg
from isaaclab_newton.renderers import NewtonWarpRendererCfg

from rl.envs.isaac.push import mdp

PUCK = {"radius": 0.04, "height": 0.04}


@configclass
class SceneCfg(InteractiveSceneCfg):
    """Table, finger, puck and a marker for the goal; all are primitive shapes except the finger."""

    table = AssetBaseCfg(
        prim_path="{ENV_REGEX_NS}/Table",
        init_state=AssetBaseCfg.InitialStateCfg(pos=(0.0, 0.0, -0.05)),
        spawn=sim_utils.CuboidCfg(
            size=(0.8, 0.8, 0.1),
            collision_props=[sim_utils.UsdPhysicsCollisionCfg(collision_enabled=True)],
            visual_material=sim_utils.PreviewSurfaceCfg(diffuse_color=(0.5, 0.5, 0.5)),
        ),
    )
    robot = ArticulationCfg(
        prim_path="{ENV_REGEX_NS}/Robot",
        spawn=sim_utils.UsdFileCfg(usd_path=str(Path(__file__).parent / "gantry.usda")),
        init_state=ArticulationCfg.InitialStateCfg(joint_pos={"slide_x": 0.0, "slide_y": -0.25}),
        actuators={
            "slides": ImplicitActuatorCfg(
                joint_names_expr=["slide_.*"], joint_effort_limit=50.0, stiffness=400.0, damping=40.0
            )
        },
    )
    puck = RigidObjectCfg(
        prim_path="{ENV_REGEX_NS}/Puck",
        init_state=RigidObjectCfg.InitialStateCfg(pos=(0.0, 0.0, PUCK["height"] / 2)),
        spawn=sim_utils.CylinderCfg(
            **PUCK,
            rigid_props=[sim_utils.UsdPhysicsRigidBodyCfg(rigid_body_enabled=True)],
            mass_props=[sim_utils.MassCfg(mass=0.1)],
            collision_props=[sim_utils.UsdPhysicsCollisionCfg(collision_enabled=True)],
            visual_material=sim_utils.PreviewSurfaceCfg(diffuse_color=(0.8, 0.1, 0.1)),
        ),
    )
    goal = RigidObjectCfg(
        prim_path="{ENV_REGEX_NS}/Goal",
        init_state=RigidObjectCfg.InitialStateCfg(pos=(0.0, 0.0, 0.001)),
        spawn=sim_utils.CylinderCfg(
            radius=0.05,
            height=0.002,
            rigid_props=[sim_utils.UsdPhysicsRigidBodyCfg(rigid_body_enabled=True, kinematic_enabled=True)],
            mass_props=[sim_utils.MassCfg(mass=1.0)],
            visual_material=sim_utils.PreviewSurfaceCfg(diffuse_color=(0.1, 0.7, 0.2)),
        ),
    )
    light = AssetBaseCfg(prim_path="/World/Light", spawn=sim_utils.DistantLightCfg(intensity=2500.0))


@configclass
class CameraSceneCfg(SceneCfg):
    """The same scene with a camera above the table."""

    camera = CameraCfg(
        prim_path="{ENV_REGEX_NS}/Camera",
        offset=CameraCfg.OffsetCfg(pos=(0.0, 0.0, 0.9), rot=(0.0, 0.7071068, 0.0, 0.7071068), convention="world"),
        data_types=["rgb"],
        spawn=sim_utils.PinholeCameraCfg(focal_length=24.0, horizontal_aperture=20.955, clipping_range=(0.05, 5.0)),
        width=64,
        height=64,
        renderer_cfg=NewtonWarpRendererCfg(),  # needs no Omniverse Kit
    )


@configclass
class ActionsCfg:
    """Each action moves the target position of the finger by up to 2 cm along each axis."""

    slides = stock.RelativeJointPositionActionCfg(asset_name="robot", joint_names=["slide_.*"], scale=0.02)


@configclass
class ObservationsCfg:
    """Positions of finger, puck and goal."""

    @configclass
    class PolicyCfg(ObservationGroupCfg):
        """The state."""

        hand_pos = ObservationTermCfg(func=mdp.finger_pos)
        object_pos = ObservationTermCfg(func=mdp.object_pos, params={"name": "puck"})
        goal_pos = ObservationTermCfg(func=mdp.object_pos, params={"name": "goal"})

    policy: PolicyCfg = PolicyCfg()


@configclass
class CameraObservationsCfg(ObservationsCfg):
    """The state, and the camera image (64, 64, 3) in 0 .. 255."""

    @configclass
    class ImageCfg(ObservationGroupCfg):
        """The image."""

        rgb = ObservationTermCfg(
            func=stock.image_rgb,
            params={"sensor_cfg": SceneEntityCfg("camera"), "data_type": "rgb", "normalize": False},
            clip=(0, 255),  # integers, since the image is uint8
        )

    image: ImageCfg = ImageCfg()


@configclass
class EventsCfg:
    """Randomisation: mass and friction once per environment; gains and positions at each reset."""

    mass = EventTermCfg(
        func=stock.randomize_rigid_body_mass,
        mode="startup",
        params={
            "asset_cfg": SceneEntityCfg("puck"),
            "mass_distribution_params": (0.7, 1.4),
            "operation": "scale",
        },
    )
    friction = EventTermCfg(
        func=stock.randomize_rigid_body_material,
        mode="startup",
        params={
            "asset_cfg": SceneEntityCfg("puck"),
            "static_friction_range": (0.4, 0.8),
            "dynamic_friction_range": (0.4, 0.8),
            "restitution_range": (0.0, 0.0),
            "num_buckets": 64,
            "make_consistent": True,
        },
    )
    gains = EventTermCfg(
        func=stock.randomize_actuator_gains,
        mode="reset",
        params={
            "asset_cfg": SceneEntityCfg("robot", joint_names=["slide_.*"]),
            "stiffness_distribution_params": (0.8, 1.25),
            "damping_distribution_params": (0.8, 1.25),
            "operation": "scale",
        },
    )
    joints = EventTermCfg(
        func=stock.reset_joints_by_offset,
        mode="reset",
        params={"position_range": (-0.04, 0.04), "velocity_range": (0.0, 0.0)},
    )
    puck = EventTermCfg(
        func=mdp.place,
        mode="reset",
        params={"name": "puck", "low": -0.12, "high": 0.12, "away_from": None, "least": 0.0},
    )
    goal = EventTermCfg(
        func=mdp.place,
        mode="reset",
        params={"name": "goal", "low": -0.18, "high": 0.18, "away_from": "puck", "least": 0.1},
    )


@configclass
class RewardsCfg:
    """Move to the puck, and move the puck to the goal; Isaac Lab multiplies each term by the seconds of a step."""

    to_puck = RewardTermCfg(func=mdp.distance_to_puck, weight=-1.0)
    to_goal = RewardTermCfg(func=mdp.distance_to_goal, weight=-5.0)
    success = RewardTermCfg(func=stock.is_terminated_term, weight=50.0, params={"term_keys": "success"})


@configclass
class TerminationsCfg:
    """An episode ends at success or after six seconds."""

    time_out = TerminationTermCfg(func=stock.time_out, time_out=True)
    success = TerminationTermCfg(func=mdp.arrived)


@configclass
class PushPuckCfg(ManagerBasedRLEnvCfg):
    """The task with state observations."""

    scene: SceneCfg = SceneCfg(num_envs=256, env_spacing=1.5)
    observations: ObservationsCfg = ObservationsCfg()
    actions: ActionsCfg = ActionsCfg()
    events: EventsCfg = EventsCfg()
    rewards: RewardsCfg = RewardsCfg()
    terminations: TerminationsCfg = TerminationsCfg()

    def __post_init__(self) -> None:
        """Set 20 actions per second and physics at 60 Hz."""
        self.decimation, self.episode_length_s = 3, 6.0
        self.sim.dt = 1 / 60
        self.sim.render_interval = self.decimation
        self.sim.physics = NewtonCfg(
            solver_cfg=MJWarpSolverCfg(
                njmax=30, nconmax=10, iterations=10, ls_iterations=50, cone="pyramidal", integrator="implicitfast"
            ),
            num_substeps=1,
        )


@configclass
class PushPuckCameraCfg(PushPuckCfg):
    """The task with state observations and a camera image of 64 x 64 pixels."""

    scene: CameraSceneCfg = CameraSceneCfg(num_envs=64, env_spacing=1.5)
    observations: CameraObservationsCfg = CameraObservationsCfg()
