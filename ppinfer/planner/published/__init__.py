"""Published figures, and models of the two systems that they are of, to hold the planner against.

``figures`` are the tables. ``eager`` says what a step of eager PyTorch takes, ``systems`` in which
order each of the two systems took its steps, ``peaks`` what they held. ``calibrate`` fits a handful
of parameters to half of the figures and judges them on the other half. ``ours`` runs ppinfer's own
schedule at the same costs on the same devices, and says step by step where the difference is from.
"""
