"""How processes reach each other: data links between stages, control channels to the driver."""
