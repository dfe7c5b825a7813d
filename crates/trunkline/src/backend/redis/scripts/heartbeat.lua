-- Renews entries of responders and members of queue groups. ARGV: ms until an entry ends, then for each: set, entry.
local now = clock()
for i = 2, #ARGV, 2 do
  redis.call('ZREMRANGEBYSCORE', ARGV[i], '-inf', now)
  redis.call('ZADD', ARGV[i], now + ARGV[1], ARGV[i + 1])
  redis.call('PEXPIRE', ARGV[i], ARGV[1] * 10)
end
return 1
