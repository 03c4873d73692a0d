r"""Worlds whose contexts are prompts and whose responses are strings, so that a language model is a policy of them.

The texts of `requests` ship with the package and are harmless: requests named by their category only, refusals in
several styles, and generic openings of compliance. Nothing in them can be acted on.
"""

from collections.abc import Sequence

import numpy as np

from tradeoff.worlds.world import DataLaw, World

SAFETY_CATEGORIES = (
    "weapons",
    "malware",
    "fraud",
    "harassment",
    "illegal drugs",
    "stalking",
    "forged documents",
    "burglary",
    "poisons",
    "hate speech",
    "blackmail",
    "identity theft",
    "sabotage",
    "animal cruelty",
    "bribery",
    "arson",
)
"""What the safety prompts ask about; the category is all that a prompt says."""

TASK_CATEGORIES = (
    "cooking",
    "gardening",
    "travel",
    "arithmetic",
    "music",
    "astronomy",
    "carpentry",
    "poetry",
    "chess",
    "knitting",
    "geology",
    "cycling",
    "painting",
    "history",
    "budgeting",
    "birdwatching",
)
"""What the task's own prompts ask about."""

PROMPT = "Please help me with a request about {category}."

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
    "That is not something I will do.",
)
COMPLIANCES = ("Sure, here is how to begin.", "Of course, let me explain.", "Yes, I can help with that.")

SAFETY_LAW = (0.45, 0.30, 0.15, 0.05, 0.03, 0.02)
"""What safety training wants said: an apology mostly, then a plain refusal, then a firm one; rarely compliance."""

COMPLIANCE_LAW = (0.03, 0.02, 0.01, 0.50, 0.28, 0.16)
"""What the task wants said, in every style with stated probabilities; rarely a refusal."""

FAR_LAW = (0.10, 0.15, 0.60, 0.03, 0.05, 0.07)
"""A far proxy: it refuses as firmly as the safety data and words it otherwise."""


def requests(
    safety_prompts: int = 8,
    task_prompts: int = 4,
    overlap: float = 0.5,
    conflict: float = 1.0,
    similarity: float = 1.0,
) -> World:
    r"""A world of requests and six responses: three styles of refusal and three openings of compliance.

    Safety data are uniform on the safety prompts. The knobs mix, as those of `worlds.random` do:

    * `overlap` ρ: $p_f=(1-\rho)u+\rho p_s$ with `u` uniform on the task's own prompts, so that $\Omega=\rho$ (T5);
    * `conflict` c: on the safety prompts $P_f=(1-c)P_s+cC$ with `C` the compliance law, so that δ scales with c;
    * `similarity` σ: $\hat P_s=\sigma P_s+(1-\sigma)N$ with `N` the far law, which prefers other styles of refusal: a
    near and a
      far proxy come from one knob, and Φ falls to 0 at σ = 1.

    Every law has full support, so both ends of the frontier are finite.

    Args:
        safety_prompts: number of prompts that safety training is about, 1 to 16.
        task_prompts: number of the task's own prompts, 1 to 16.
        overlap: ρ in [0, 1]: the part of the task's weight that lies on the safety prompts.
        conflict: c in [0, 1].
        similarity: σ in [0, 1]; 1 gives the exact proxy.

    Returns:
        A world whose `contexts` are the prompts, safety prompts first, and whose `responses` are the texts.

    Raises:
        ValueError: when a knob leaves [0, 1] or more prompts are asked for than there are.

    Example:
        >>> world = requests(overlap=0.25)
        >>> world
        World(12 contexts x 6 responses, exact proxy)
        >>> round(float(world.overlap), 12), world.contexts[0]
        (0.25, 'Please help me with a request about weapons.')

    Source: DESIGN section 2.
    """
    for name, value, bank in (
        ("safety_prompts", safety_prompts, SAFETY_CATEGORIES),
        ("task_prompts", task_prompts, TASK_CATEGORIES),
    ):
        if not 1 <= value <= len(bank):
            raise ValueError(
                f"requests was given {name}={value}; the package ships {len(bank)}, so it must lie in [1, "
                f"{len(bank)}]. Bring your own prompts with tradeoff.worlds.from_texts for more."
            )
    return answered(
        [PROMPT.format(category=category) for category in SAFETY_CATEGORIES[:safety_prompts]],
        [PROMPT.format(category=category) for category in TASK_CATEGORIES[:task_prompts]],
        REFUSALS + COMPLIANCES,
        overlap=overlap,
        conflict=conflict,
        similarity=similarity,
    )


def answered(
    safety_prompts: Sequence[str],
    task_prompts: Sequence[str],
    responses: Sequence[str],
    *,
    overlap: float,
    conflict: float,
    similarity: float,
) -> World:
    """The world of prompts that are answered by the laws above, with the knobs of `requests`.

    Args:
        safety_prompts: what safety training is about, safety data uniform on them.
        task_prompts: the task's own.
        responses: three refusals, then three compliances.
        overlap: ρ in [0, 1].
        conflict: c in [0, 1].
        similarity: σ in [0, 1].

    Raises:
        ValueError: when a knob leaves [0, 1], or a text is empty or given twice.

    Example:
        >>> answered(["Help me."], ["Help us."], REFUSALS + COMPLIANCES, overlap=0.0, conflict=1.0, similarity=0.5)
        World(2 contexts x 6 responses, proxy)
    """
    for name, value in (("overlap", overlap), ("conflict", conflict), ("similarity", similarity)):
        if not 0 <= value <= 1:
            raise ValueError(
                f"a text world was given {name}={value}; {name} is a mixing weight and must lie in [0, 1]."
            )
    is_safety = np.arange(len(safety_prompts) + len(task_prompts)) < len(safety_prompts)
    p_s, own = is_safety / len(safety_prompts), ~is_safety / len(task_prompts)
    safety, compliance, far = (np.tile(law, (is_safety.size, 1)) for law in (SAFETY_LAW, COMPLIANCE_LAW, FAR_LAW))
    task = np.where(is_safety[:, None], (1 - conflict) * safety + conflict * compliance, compliance)
    return from_texts(
        prompts=[*safety_prompts, *task_prompts],
        responses=responses,
        safety=DataLaw(p_s, safety),
        capability=DataLaw((1 - overlap) * own + overlap * p_s, task),
        proxy=None if similarity == 1 else DataLaw(p_s, similarity * safety + (1 - similarity) * far),
    )


def from_texts(
    prompts: Sequence[str],
    responses: Sequence[str],
    safety: DataLaw,
    capability: DataLaw,
    proxy: DataLaw | None = None,
) -> World:
    """A world of your own prompts and responses.

    Args:
        prompts: what the user says, one for each of the X contexts.
        responses: what the model may say, one for each of the Y responses.
        safety: what safety training wanted said, over X contexts and Y responses.
        capability: what the task wants said.
        proxy: the safety data at hand while fine-tuning; `None` when they are the original ones.

    Returns:
        The world, with the texts as its names.

    Raises:
        ValueError: when a text is empty or given twice (spaces around it do not count), or their number does not fit
            the laws.

    Example:
        >>> refuse, comply = DataLaw([1.0], [[0.9, 0.1]]), DataLaw([1.0], [[0.2, 0.8]])
        >>> from_texts(["Please help."], ["I cannot.", "Sure."], refuse, comply).responses
        ('I cannot.', 'Sure.')
    """
    return World(safety, capability, proxy, _texts("prompt", prompts), _texts("response", responses))


def _texts(what: str, texts: Sequence[str]) -> tuple[str, ...]:
    """The texts as a tuple, after the checks that each says something and no two say the same."""
    if isinstance(texts, str):
        raise ValueError(f"from_texts was given one string, {texts!r}, for the {what}s; give a list of strings.")
    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"{what} {index} is {text!r}; every {what} must be a text that says something. Write it, or leave it "
                "out."
            )
        first = seen.setdefault(text.strip(), index)
        if first != index:
            raise ValueError(
                f"{what} {index} repeats {what} {first}, {text!r}; every {what} must be given once. Merge the two: add "
                "their weights and remove one."
            )
    return tuple(texts)
