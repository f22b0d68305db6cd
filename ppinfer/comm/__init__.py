"""How stages and driver reach each other: data links between neighbours, control channels to the driver."""
