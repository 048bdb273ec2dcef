"""The parts that the lab is made of. Everything here is real; only the world outside is ours."""
