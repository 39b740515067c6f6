"""Models and inputs that ship with the package or with packages of its ``demo`` extra."""
