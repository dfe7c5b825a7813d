-- Acknowledges deliveries of which the member lost none: as long as nobody lost one, they are as they were handed out.
-- KEYS: stream; in a cluster also the hash of the consumer. ARGV: consumer, member, identity of the consumer, how often deliveries were lost as the member knows, ids.
-- Answers {} if the consumer is another, or {how often deliveries were lost by now, how many were acknowledged}; none is if
-- that is not what the member knows.
local stream, name = KEYS[1], ARGV[1]
local known = redis.call('HMGET', stream .. ':consumer:' .. name, 'identity', 'fence')
if known[1] ~= ARGV[3] then
  return {}
end
local fence, done = known[2] or '0', 0
if fence == ARGV[4] then
  local group = group_of(name, ARGV[3])
  for i = 5, #ARGV, 1000 do
    done = done + redis.call('XACK', stream, group, unpack(ARGV, i, math.min(i + 999, #ARGV)))
  end
end
return { tonumber(fence), done }
