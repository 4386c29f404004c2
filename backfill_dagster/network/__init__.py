"""The only place that speaks HTTP: which addresses are met, how answers are read, how often hosts are asked."""
