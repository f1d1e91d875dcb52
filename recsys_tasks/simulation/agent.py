"""A Transformer-DQN that fills a shop's slots: Q(state, candidate) for any set of candidates, known or new.

Sources: DQN (Mnih et al. 2015), Double DQN (van Hasselt et al. 2016), n-step returns (Sutton 1988; Hessel et al. 2018),
CQL(H) (Kumar et al. 2020). The state is read by a pre-norm Transformer (Vaswani et al. 2017; Xiong et al. 2020) from
the customer's last events. Q is a small network over [state, candidate, state * candidate, features of the candidate]
plus a linear skip from the features, which begins as the supervised order: before the first step the agent does what
the recommender beside it would do.

Deviations from the papers:

- many environments step together, and a batch is learned from after each of their steps, not every fourth step of one;
- Adam (Kingma & Ba 2015) in place of RMSProp; Huber's loss bends at 10, not at 1 as the clipped error of Mnih et al.
  amounts to: purchases are rare, and bent below their reward the loss looks for something nearer to their median, 0;
- the learning rate falls linearly to a twentieth, so that the last network is no draw from a wide cloud of them;
- rewards are not clipped: their sizes are the shop's own weights;
- epsilon falls linearly to 0.05 within a share of the steps (0.1 within a million frames there);
- what may not be chosen is left out everywhere: of random actions, of the greedy ones and of the target's maximum;
- n-step returns are not corrected for what exploration did in between, as in Hessel et al.;
- item vectors are given (of a sequence model, say) and stand still, reduced to the network's width by principal
  components, so that an item without any event has a place too;
- a token behind the newest event gathers the state; of the last block only its row is computed, for no other is read;
- CQL starts from the weights learned in the simulator, with its penalty over the candidates that were allowed.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from recsys_tasks.errors import ContractError, TrainingError
from recsys_tasks.simulation.replay import Log, Observation, Replay, Transitions

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from recsys_tasks.simulation.shop import ShopVectorEnv

log = logging.getLogger(__name__)

LOG_SECONDS = 10.0
"""Between lines that tell how far training is."""
FORMAT = 1
"""Version of the saved form; ``load`` refuses another."""


class AgentConfig(BaseModel):
    """Configuration of the agent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = 32
    """of item vectors, state and attention"""
    blocks: int = 1
    heads: int = 2
    hidden: int = 64
    """of the network over state and candidate"""
    prior: tuple[float, ...] = (1.0,)
    """weights that the skip from the features begins with, the rest 0; the first feature is the supervised score"""
    discount: float = 0.95
    """of a slot later"""
    n_steps: int = 3
    double: bool = True
    """the online network chooses the action that the target network values; else the target network does both"""
    learning_rate: float = 1e-3
    huber: float = 10.0
    """error beyond which the loss grows linearly; smaller than rewards, it would value rare ones too low"""
    gradient_norm: float = 10.0
    """to which longer gradients are cut"""
    batch_size: int = 128
    capacity: int = 50_000
    """states remembered"""
    warm_up: int = 2_000
    """states remembered before the first gradient step"""
    updates: int = 1
    """gradient steps after each step of all environments"""
    target_every: int = 100
    """gradient steps after which the target network becomes the online network"""
    epsilon: tuple[float, float] = (1.0, 0.05)
    """at first and at last"""
    exploration: float = 0.3
    """share of the steps in which epsilon falls from the first to the last, linearly"""
    conservative: float = 1.0
    """alpha, weight of the penalty of CQL when fine-tuning"""
    tuning_rate: float = 3e-4
    """learning rate of fine-tuning"""
    tuning_steps: int = 1_000


class Agent:
    """A Q-network with what trains it; deterministic given its seed, on one thread.

    Parameters
    ----------
    item_vectors
        (n_items, d) float32 whose dot products rank like items by likeness; zeros for an item that nothing is known of.
    n_events
        Kinds of events.
    n_features
        Of a candidate.
    history
        H, events of a state.
    config
        Hyper-parameters.
    seed
        Of initial weights, exploration and draws from the memory.

    """

    def __init__(
        self,
        item_vectors: np.ndarray,
        n_events: int,
        n_features: int,
        history: int,
        config: AgentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.config, self.seed = config or AgentConfig(), seed
        self.shape = {"n_events": n_events, "n_features": n_features, "history": history}
        self.curve: list[dict[str, float]] = []
        """What training was like, a dict about every hundredth of it, in the order of ``steps``."""
        self.basis = _basis(item_vectors, self.config.width)
        self._build(self.project(item_vectors))

    def _build(self, items: np.ndarray) -> None:
        import tensorflow as tf

        self.items = np.vstack([np.zeros((1, self.config.width), np.float32), items])  # 0 is no item
        self.network, self.target = (q_network(self.config, **self.shape, seed=self.seed) for _ in range(2))
        self._table = tf.constant(self.items)
        self._program = tf.function(self._masked_q, reduce_retracing=True)

    def project(self, item_vectors: np.ndarray) -> np.ndarray:
        """Return (n, width) float32, what the network reads of vectors (n, d) of items, also of new ones."""
        return (item_vectors @ self.basis).astype(np.float32)

    def q_values(self, observation: Observation, rows: int = 1024) -> np.ndarray:
        """Return (n, C) float32, expected discounted reward of each candidate; -inf where it may not be chosen."""
        n = len(observation["history"])
        parts = [
            {name: array[start : start + rows] for name, array in observation.items()} for start in range(0, n, rows)
        ]
        return np.concatenate([self._program(_read(part)).numpy() for part in parts])

    def act(self, observation: Observation) -> np.ndarray:
        """Return (n,) the best candidates; the first where none may be chosen."""
        return self.q_values(observation).argmax(1)

    def train(self, env: "VectorEnv[Any, Any, Any]", steps: int) -> Self:
        """Practise in a shop of SAME_STEP autoreset for so many steps, summed over its environments.

        Raises ``TrainingError`` where the loss is not a number.
        """
        config, rng = self.config, np.random.default_rng(self.seed)
        learner = Learner(self, config.learning_rate, steps // env.num_envs * config.updates)
        replay = Replay(config.capacity, config.n_steps, config.discount)
        diary = Diary(self.curve, env.num_envs, steps)
        observation, _ = env.reset(seed=self.seed)
        replay.begin(observation)
        enough = max(config.warm_up, env.num_envs * (config.n_steps + 1))
        for done in range(0, steps, env.num_envs):
            epsilon = self.epsilon(done / steps)
            action = self._explore(observation, epsilon, rng)
            observation, reward, terminated, truncated, infos = env.step(action)
            replay.add(action, reward, terminated, truncated, observation, infos.get("final_obs"))
            if len(replay) >= enough:
                diary.losses += [
                    float(learner.td(replay.sample(config.batch_size, rng))) for _ in range(config.updates)
                ]
            diary.add(reward, terminated | truncated, done + env.num_envs, epsilon)
        return self

    def epsilon(self, share: float) -> float:
        """Return the chance of a random action after a share of the training, 0 to 1."""
        return float(np.interp(share, (0, self.config.exploration), self.config.epsilon))

    def _explore(self, observation: Observation, epsilon: float, rng: np.random.Generator) -> np.ndarray:
        mask = observation["action_mask"] > 0
        action = np.where(mask, rng.random(mask.shape), -1).argmax(1)
        greedy = rng.random(len(action)) >= epsilon
        if greedy.any():  # of all of them, so that the program is of one shape
            action[greedy] = self.act(observation)[greedy]
        return action

    def fine_tune(self, logged: Log) -> Self:
        """Learn on from logged decisions with a penalty on what was not done there, CQL(H): from simulator to shop."""
        replay = Replay.of(logged, self.config.n_steps, self.config.discount)
        learner = Learner(self, self.config.tuning_rate, self.config.tuning_steps)
        rng = np.random.default_rng(self.seed)
        self._tune("fine-tuning", lambda: learner.cql(replay.sample(self.config.batch_size, rng)))
        return self

    def fit_supervised(self, logged: Log) -> Self:
        """Learn to choose what was chosen, weighted by its reward: the control, which knows no simulator and no future.

        Cross entropy over the candidates that were allowed. Raises ``ContractError`` where nothing was earned.
        """
        earned = np.flatnonzero(logged.reward > 0)
        if not len(earned):
            raise ContractError("log: expected rewards above 0, found none")
        learner = Learner(self, self.config.learning_rate, self.config.tuning_steps)
        rng = np.random.default_rng(self.seed)

        def step() -> Any:
            drawn = rng.choice(earned, self.config.batch_size)
            state = {name: array[drawn] for name, array in logged.state.items()}
            return learner.supervised(state, logged.action[drawn], logged.reward[drawn])

        self._tune("control", step)
        return self

    def _tune(self, what: str, step: Callable[[], Any]) -> None:
        steps, started = self.config.tuning_steps, time.monotonic()
        told, losses = started, []
        for n in range(1, steps + 1):
            losses.append(float(step()))
            if not np.isfinite(losses[-1]):
                raise TrainingError(f"agent: the loss of {what} is {losses[-1]}; lower the learning rate")
            now = time.monotonic()
            if now - told > LOG_SECONDS or n == steps:
                told, left = now, (now - started) / n * (steps - n)
                log.info("agent: %s, step %d of %d, loss %.4f, %.0f s left", what, n, steps, np.mean(losses), left)
                losses = []

    def _q(self, network: Any, observation: Mapping[str, Any]) -> Any:
        """Return (n, C) tensor of all candidates, allowed or not."""
        import tensorflow as tf

        vectors = tf.gather(self._table, observation["candidates"])
        history = tf.gather(self._table, observation["history"])
        return network([history, observation["event"], vectors, observation["features"]])

    def _masked_q(self, observation: Mapping[str, Any]) -> Any:
        import tensorflow as tf

        return tf.where(observation["action_mask"] > 0, self._q(self.network, observation), -np.inf)

    def state(self) -> dict[str, np.ndarray]:
        """Return all that was learned, by name."""
        weights = {f"weight_{_name(weight)}": weight.numpy() for weight in self.network.weights}
        return {"items": self.items[1:], "basis": self.basis, **weights}

    def save(self, folder: Path) -> None:
        """Write ``agent.json`` and one ``.npy`` file an array into the folder."""
        state = self.state()
        for name, array in state.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        described = {"format": FORMAT, "config": self.config.model_dump(), "seed": self.seed, "shape": self.shape}
        described |= {"arrays": sorted(state), "curve": self.curve}
        (folder / "agent.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote. Raises ``TrainingError`` where it is of another format."""
        described = json.loads((folder / "agent.json").read_text())
        if described["format"] != FORMAT:
            raise TrainingError(f"{folder}: format is {described['format']}, expected {FORMAT}; train the agent again")
        state = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in described["arrays"]}
        return cls.restore(described, state)

    @classmethod
    def restore(cls, described: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Self:
        """Return the agent of a state, with the ``config``, ``seed``, ``shape`` and ``curve`` it had."""
        agent = cls.__new__(cls)
        agent.config, agent.seed = AgentConfig(**described["config"]), described["seed"]
        agent.shape, agent.curve, agent.basis = described["shape"], list(described["curve"]), state["basis"]
        agent._build(state["items"])
        for weight in agent.network.weights:
            weight.assign(state[f"weight_{_name(weight)}"])
        return agent

    def export(self, path: Path, candidates: int) -> None:
        """Write the network for LiteRT, one customer at a time: what it reads of items are vectors, see ``project``.

        Inputs: ``history`` (1, H, width) float32 and ``event`` (1, H) int32, ``candidates`` (1, C, width), ``features``
        (1, C, F), ``action_mask`` (1, C) int32. Output: (1, C) float32 Q, -1e9 where the mask is 0.
        """
        import tensorflow as tf

        width, shape = self.config.width, self.shape
        signature = {
            "history": tf.TensorSpec((1, shape["history"], width), tf.float32, "history"),
            "event": tf.TensorSpec((1, shape["history"]), tf.int32, "event"),
            "candidates": tf.TensorSpec((1, candidates, width), tf.float32, "candidates"),
            "features": tf.TensorSpec((1, candidates, shape["n_features"]), tf.float32, "features"),
            "action_mask": tf.TensorSpec((1, candidates), tf.int32, "action_mask"),
        }

        @tf.function(input_signature=list(signature.values()))
        def q(history: Any, event: Any, candidates: Any, features: Any, action_mask: Any) -> dict[str, Any]:
            found = self.network([history, event, candidates, features])
            return {"q": tf.where(action_mask > 0, found, -1e9)}

        module = tf.Module()
        module.network, module.q = self.network, q
        converter = tf.lite.TFLiteConverter.from_concrete_functions([q.get_concrete_function()], module)
        path.write_bytes(converter.convert())


class Diary:
    """What training is like: a point of the curve about every hundredth of it, a line about every ten seconds."""

    def __init__(self, curve: list[dict[str, float]], n_envs: int, steps: int) -> None:
        self.curve, self.steps = curve, steps
        self.earned, self.finished, self.losses = np.zeros(n_envs), list[float](), list[float]()
        self.episodes, self.total, self.noted = 0, 0.0, 0
        self.started = self.told = time.monotonic()

    def add(self, reward: np.ndarray, ended: np.ndarray, done: int, epsilon: float) -> None:
        """Take the rewards (n_envs,) of a step; ``done`` are the steps so far, of all environments."""
        self.earned += reward
        self.finished += self.earned[ended].tolist()
        self.earned[ended] = 0
        now, over = time.monotonic(), done >= self.steps
        if self.finished and (done - self.noted >= self.steps / 100 or over):
            if not np.isfinite(loss := float(np.mean(self.losses or 0))):
                raise TrainingError(f"agent: the loss is {loss} after {done} steps; lower the learning rate")
            self.episodes, self.total = self.episodes + len(self.finished), self.total + sum(self.finished)
            point = {"steps": done, "episodes": self.episodes, "epsilon": epsilon, "loss": loss}
            rewards = {"reward": float(np.mean(self.finished)), "cumulative": self.total}
            self.curve.append({**point, **rewards, "seconds": now - self.started})
            self.finished, self.losses, self.noted = [], [], done
        if self.curve and (now - self.told > LOG_SECONDS or over):
            self.told, last, left = now, self.curve[-1], (now - self.started) * max(self.steps / done - 1, 0)
            line = f"mean reward of an episode {last['reward']:.3f}, loss {last['loss']:.4f}, {left:.0f} s left"
            log.info("agent: step %d of %d, epsilon %.2f, %s", done, self.steps, epsilon, line)


class Learner:
    """Gradient steps on an agent's network; the target network is the agent's, and moves only every so many of them."""

    def __init__(self, agent: Agent, learning_rate: float, steps: int) -> None:
        import tensorflow as tf

        self.agent, self.steps = agent, 0
        self.variables = agent.network.trainable_variables
        rate = tf.keras.optimizers.schedules.PolynomialDecay(learning_rate, max(steps, 1), learning_rate / 20)
        longest = agent.config.gradient_norm
        self.optimizer = tf.keras.optimizers.Adam(rate, global_clipnorm=longest, jit_compile=False)
        self.optimizer.build(self.variables)
        self.programs = {name: tf.function(getattr(self, f"_{name}")) for name in ("td", "cql", "supervised")}
        self.move()

    def move(self) -> None:
        """Make the target network the online network."""
        self.agent.target.set_weights(self.agent.network.get_weights())

    def td(self, batch: Transitions) -> Any:
        """Take a step towards the batch's targets and return the loss, Huber's."""
        return self._learn("td", *_tensors(batch))

    def cql(self, batch: Transitions) -> Any:
        """The same with the conservative penalty."""
        return self._learn("cql", *_tensors(batch))

    def supervised(self, state: Observation, action: np.ndarray, weight: np.ndarray) -> Any:
        """Take a step of weighted cross entropy and return the loss."""
        return self._learn("supervised", _read(state), action.astype(np.int32), weight.astype(np.float32))

    def _learn(self, program: str, *arrays: Any) -> Any:
        loss = self.programs[program](*arrays)
        self.steps += 1
        if self.steps % self.agent.config.target_every == 0:
            self.move()
        return loss

    def targets(self, reward: Any, discount: Any, following: Mapping[str, Any]) -> Any:
        """Return (n,) reward + discount * the target network's value of the next state's best allowed action."""
        import tensorflow as tf

        agent = self.agent
        allowed = following["action_mask"] > 0
        network = agent.network if agent.config.double else agent.target
        best = tf.argmax(tf.where(allowed, agent._q(network, following), -np.inf), 1, tf.int32)
        value = agent._q(agent.target, _only(following, best))[:, 0]
        return reward + discount * tf.where(tf.reduce_any(allowed, 1), value, 0.0)

    def _td(self, state: Any, action: Any, reward: Any, discount: Any, following: Any) -> Any:
        import tensorflow as tf

        target = self.targets(reward, discount, following)
        with tf.GradientTape() as tape:
            loss = self._huber(self.agent._q(self.agent.network, _only(state, action))[:, 0] - target)
        return self._descend(tape, loss)

    def _cql(self, state: Any, action: Any, reward: Any, discount: Any, following: Any) -> Any:
        import tensorflow as tf

        target = self.targets(reward, discount, following)
        with tf.GradientTape() as tape:
            q, chosen = self._all(state, action)
            penalty = tf.reduce_mean(tf.reduce_logsumexp(q, 1) - chosen)
            loss = self._huber(chosen - target) + self.agent.config.conservative * penalty
        return self._descend(tape, loss)

    def _supervised(self, state: Any, action: Any, weight: Any) -> Any:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            q, chosen = self._all(state, action)
            loss = tf.reduce_sum(weight * (tf.reduce_logsumexp(q, 1) - chosen)) / tf.reduce_sum(weight)
        return self._descend(tape, loss)

    def _huber(self, error: Any) -> Any:
        """Return the mean of half the squared error, continued as a straight line beyond ``huber``."""
        import tensorflow as tf

        size, bend = tf.abs(error), self.agent.config.huber
        return tf.reduce_mean(tf.where(size < bend, error**2 / 2, bend * (size - bend / 2)))

    def _all(self, state: Any, action: Any) -> tuple[Any, Any]:
        """Return Q (n, C) of all candidates, far below all where not allowed, and (n,) of the actions."""
        import tensorflow as tf

        q = tf.where(state["action_mask"] > 0, self.agent._q(self.agent.network, state), -1e9)
        return q, tf.gather(q, action, batch_dims=1)

    def _descend(self, tape: Any, loss: Any) -> Any:
        gradients = tape.gradient(loss, self.variables)
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))
        return loss


def q_network(config: AgentConfig, n_events: int, n_features: int, history: int, seed: int) -> Any:
    """Return a Keras model of Q (n, C); it reads a history once for all candidates.

    Its inputs: vectors (n, H, width) and events (n, H) of the history, vectors (n, C, width) and features (n, C, F) of
    the candidates.
    """
    import tensorflow as tf

    layers, width, heads = tf.keras.layers, config.width, config.heads
    seeds = iter(range(seed * 1000, seed * 1000 + 1000))

    def dense(units: int, name: str, **settings: Any) -> Any:
        start = tf.keras.initializers.GlorotUniform(next(seeds))
        return layers.Dense(units, name=name, **{"kernel_initializer": start, **settings})

    def norm(name: str) -> Any:
        return layers.LayerNormalization(epsilon=1e-5, name=name)

    class Block(tf.keras.layers.Layer):
        """Attention and a feed-forward layer, each behind a norm and around a skip; of the last rows, or of all."""

        def __init__(self, name: str) -> None:
            super().__init__(name=name)
            self.norm_read, self.norm_wide = norm("norm_read"), norm("norm_wide")
            self.query, self.key, self.value = (dense(width, name) for name in ("query", "key", "value"))
            self.merge = dense(width, "merge")
            self.widen, self.narrow = dense(2 * width, "widen", activation="relu"), dense(width, "narrow")

        def call(self, x: Any, hidden: Any, rows: int) -> Any:
            def split(y: Any) -> Any:
                return tf.transpose(tf.reshape(y, (-1, y.shape[1], heads, width // heads)), (0, 2, 1, 3))

            read = self.norm_read(x)
            query, key, value = split(self.query(read[:, -rows:])), split(self.key(read)), split(self.value(read))
            scores = tf.matmul(query, key, transpose_b=True) * (width // heads) ** -0.5
            attended = tf.matmul(tf.nn.softmax(scores + hidden), value)  # (n, heads, rows, width / heads)
            x = x[:, -rows:] + self.merge(tf.reshape(tf.transpose(attended, (0, 2, 1, 3)), (-1, rows, width)))
            return x + self.narrow(self.widen(self.norm_wide(x)))

    class QNetwork(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__(name="q")
            small = tf.keras.initializers.RandomNormal(0, 0.02, next(seeds))
            self.events = layers.Embedding(n_events + 1, width, small, name="events")
            places = tf.keras.initializers.RandomNormal(0, 0.02, next(seeds))
            self.places = self.add_weight("places", (history + 1, width), initializer=places)
            self.stack = [Block(f"block_{n}") for n in range(config.blocks)]
            self.norm_state = norm("norm_state")
            self.of_state, self.of_candidate = dense(config.hidden, "state"), dense(config.hidden, "candidate")
            self.of_both = dense(1, "value", kernel_initializer="zeros")
            prior = np.pad(config.prior, (0, max(n_features - len(config.prior), 0)))[:n_features, None]
            prior = tf.keras.initializers.Constant(prior)
            self.skip = dense(1, "skip", use_bias=False, kernel_initializer=prior)

        def call(self, inputs: Any) -> Any:
            past, event, candidates, features = inputs
            x = past + self.events(event)
            x = tf.concat([x, tf.zeros_like(x[:, :1])], 1) + self.places
            there = tf.concat([event > 0, tf.ones_like(event[:, :1], tf.bool)], 1)
            hidden = tf.where(there, 0.0, -1e9)[:, None, None]  # (n, 1, 1, H + 1)
            for n, block in enumerate(self.stack, start=1):
                x = block(x, hidden, 1 if n == config.blocks else history + 1)
            state = self.norm_state(x)  # (n, 1, width)
            each = tf.concat([candidates, candidates * state, features], 2)
            found = self.of_both(tf.nn.relu(self.of_state(state) + self.of_candidate(each))) + self.skip(features)
            return found[:, :, 0]

    network = QNetwork()
    vectors = np.zeros((1, history, width), np.float32)
    network([vectors, np.zeros((1, history), np.int32), vectors[:, :1], np.zeros((1, 1, n_features), np.float32)])
    return network


def play(
    env: "VectorEnv[Any, Any, Any]", policy: Callable[[Observation], np.ndarray], episodes: int, seed: int = 0
) -> np.ndarray:
    """Return (episodes,) undiscounted rewards of a policy, from observations to (n_envs,) actions.

    Every environment plays as many episodes, one more or less: of those that end first, more would be short ones.
    """
    quota = np.full(env.num_envs, episodes // env.num_envs) + (np.arange(env.num_envs) < episodes % env.num_envs)
    observation, _ = env.reset(seed=seed)
    earned, found = np.zeros(env.num_envs), []
    while quota.any():
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        earned += reward
        ended = terminated | truncated
        found += earned[ended & (quota > 0)].tolist()
        quota[ended & (quota > 0)] -= 1
        earned[ended] = 0
    return np.array(found)


def play_each(env: "ShopVectorEnv", policy: Callable[[Observation], np.ndarray], repeats: int, seed: int) -> np.ndarray:
    """Return (n_customers,) mean undiscounted reward of an episode of each of a shop's customers, one an environment.

    With the same seed two policies begin with the same customers, who are units to compare them by.
    """
    earned = np.zeros(env.num_envs)
    for n in range(repeats):
        observation, _ = env.reset(seed=seed + n, options={"customers": env.customers})
        there = np.ones(env.num_envs, bool)
        while there.any():
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            earned[there] += reward[there]
            there &= ~(terminated | truncated)
    return earned / repeats


def _basis(item_vectors: np.ndarray, width: int) -> np.ndarray:
    """Return (d, width) float32: principal components of known items, scaled so that products are of order 1."""
    known = item_vectors[np.abs(item_vectors).sum(1) > 0].astype(np.float64)
    if not len(known):
        raise ContractError("agent: expected item vectors, found zeros only")
    values, vectors = np.linalg.eigh(known.T @ known / len(known))
    values, vectors = values[::-1][:width], vectors[:, ::-1][:, :width]  # the strongest first
    vectors *= np.sign(vectors[np.abs(vectors).argmax(0), np.arange(len(values))])  # the same on any machine
    scaled = vectors * np.sqrt(len(values) / values.sum())
    return np.pad(scaled, ((0, 0), (0, width - len(values)))).astype(np.float32)


def _only(observation: Mapping[str, Any], action: Any) -> dict[str, Any]:
    """Return the same states with one candidate (n,) each."""
    import tensorflow as tf

    cut = ("candidates", "features")
    return {n: tf.gather(a, action[:, None], batch_dims=1) if n in cut else a for n, a in observation.items()}


def _read(observation: Observation) -> dict[str, np.ndarray]:
    """Return what the network reads, in its types."""
    types: Iterable[tuple[str, Any]] = [("history", np.int32), ("event", np.int32), ("candidates", np.int32)]
    types = [*types, ("features", np.float32), ("action_mask", np.int8)]
    return {name: np.asarray(observation[name], kind) for name, kind in types}


def _tensors(batch: Transitions) -> tuple[Any, ...]:
    following = _read(batch.next_state)
    return _read(batch.state), batch.action.astype(np.int32), batch.reward, batch.discount, following


def _name(weight: Any) -> str:
    return str(weight.name).split(":")[0].replace("/", ".")
