"""The main job: several engines, one data set, one table."""
