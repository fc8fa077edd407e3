"""The compared methods that train through TRL and PEFT, imported only when requested."""
