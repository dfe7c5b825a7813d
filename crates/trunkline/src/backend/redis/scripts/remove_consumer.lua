-- Removes a consumer and all it remembers. KEYS: stream. ARGV: consumer. Answers 1 if it was there.
local existed = drop_consumer(KEYS[1], ARGV[1])
wake(KEYS[1])
return existed
