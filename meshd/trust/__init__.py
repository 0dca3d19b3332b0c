"""Who is a member and what each may say, from signed facts alone.  Start reading at `ledger`."""
