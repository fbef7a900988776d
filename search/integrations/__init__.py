"""Other people's training loops inside `train(run)`: a callback each, which reports and makes them go on.

Each module needs its framework, which an extra of the same name installs.
"""
