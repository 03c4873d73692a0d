"""Tests of Case II beyond a pair of convex quadratics."""
