"""Values behind one protocol: progress toward the instruction on imagined states."""
