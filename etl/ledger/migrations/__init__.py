"""How older ledgers are brought up; `etl.ledger.tables` has what a new one looks like. No rows of raw tables."""
