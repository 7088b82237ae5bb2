"""Upgrades of older ledgers; a new ledger is created from `etl.ledger.tables`. Nothing here touches raw tables."""
