-- Enters or renews who answers requests and who is a member of queue groups.
-- KEYS: sets. ARGV: for each set, ms until the entry ends, and the entry.
local now = clock()
for i, set in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
  redis.call('ZADD', set, now + ARGV[2 * i - 1], ARGV[2 * i])
  redis.call('PEXPIRE', set, 60000)
end
return 1
