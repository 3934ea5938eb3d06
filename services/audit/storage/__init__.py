"""The log's database: SQLite for one writer, PostgreSQL for many, behind one Protocol."""
