"""Who one is at Globus: logins, consents and tokens, for gateway and mover alike."""
