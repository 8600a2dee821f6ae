"""Many simulations: systems compared, rates swept, figures and pictures."""
