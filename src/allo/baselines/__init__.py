"""The compared methods that train through TRL and PEFT; imported where one is asked for."""
