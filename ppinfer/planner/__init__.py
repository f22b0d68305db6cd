"""Pure models of cost: which devices, which split, how fast, before anyone buys or waits.

The schedule is data and needs no torch, so the real schedule runs here in modelled time.
"""
