"""An independent oracle: the definitions of framework section 3.0 in 50-digit arithmetic, with nothing rearranged."""

from mpmath import inf, log, mp, mpf

import tradeoff as to

mp.dps = 50


def kl(P, Q):
    """Sum of P log(P/Q); infinite where only Q is zero."""
    total = mpf(0)
    for p, q in zip(P, Q, strict=True):
        if p > 0:
            if q == 0:
                return inf
            total += p * log(p / q)
    return total


def law(values):
    """Exact values of floats, normalised exactly."""
    exact = [mpf(float(v)) for v in values]
    return [v / sum(exact) for v in exact]


class Oracle:
    """Gaps of a world by their definitions."""

    def __init__(self, world: to.World) -> None:
        self.sides = {}
        for role, one in (("s", world.safety), ("f", world.capability), ("q", world.training_safety)):
            self.sides[role] = (law(one.p), [law(row) for row in one.P])

    def minimiser(self, lam):
        """The mixture of T1, row by row."""
        (p_f, P_f), (p_q, P_q) = self.sides["f"], self.sides["q"]
        rows = []
        for x in range(len(p_f)):
            m = p_f[x] + mpf(lam) * p_q[x]
            w = p_f[x] / m if m > 0 else mpf(0)
            rows.append([w * f + (1 - w) * q for f, q in zip(P_f[x], P_q[x], strict=True)])
        return rows

    def gap(self, role, rows):
        """Sum over contexts of weight times divergence."""
        p, P = self.sides[role]
        return sum((p[x] * kl(P[x], rows[x]) for x in range(len(p)) if p[x] > 0), mpf(0))

    def gaps(self, lam):
        """Safety gap, capability gap and value at a penalty."""
        rows = self.minimiser(lam)
        capability = self.gap("f", rows)
        return self.gap("s", rows), capability, capability + mpf(lam) * self.gap("q", rows)


def relative_error(value, exact):
    """|value - exact| / exact, 0 when both are the same infinity or zero."""
    value = mpf(float(value))
    return mpf(0) if value == exact else abs(value - exact) / abs(exact) if exact else inf
