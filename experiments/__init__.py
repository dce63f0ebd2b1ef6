"""What we ran: experiments as values, the stages in order, run folders, and the console script. Imports all rooms."""

import os

# Read by OpenMP when torch loads it, so set before any import of torch. Threads that wait by spinning fight for the
# cores with every other process: a step of 0.65 s took 17 s beside two busy processes on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
