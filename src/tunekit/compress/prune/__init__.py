"""Models made smaller by leaving weights out: single ones, channels, whole layers."""
