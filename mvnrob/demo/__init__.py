"""The main job, ``python -m mvnrob.demo``: digits with every estimator, photographs with 1,000
classes, each beside Monte Carlo."""
