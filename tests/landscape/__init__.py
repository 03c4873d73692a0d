"""Tests of the landscape."""
