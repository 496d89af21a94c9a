"""The judge: watt-seconds over every limit on true physics, each explained by the fault ledger or held against the controller.

A process of its own. It reads the truth stream and nothing else of the simulator, nothing of the controller, and no meter.
"""
