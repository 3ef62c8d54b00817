"""The reacher family: arms that reach for goal after goal."""
