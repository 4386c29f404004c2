"""What a study will cost, told before anything is fetched: requests, hours, bytes and dollars."""
