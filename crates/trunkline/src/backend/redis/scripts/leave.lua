-- Leaves a consumer: what the member holds is due at once, and its lease is free. Only then is it removed, so that
-- nothing pending goes with it.
-- KEYS: stream. ARGV: consumer, member, identity of the consumer. Answers how many messages it gave back.
local stream, name, member = KEYS[1], ARGV[1], ARGV[2]
local group = group_of(name, ARGV[3])
local consumer, due, lease = stream .. ':consumer:' .. name, stream .. ':due:' .. name, stream .. ':lease:' .. name
if redis.call('HGET', consumer, 'identity') ~= ARGV[3] or redis.pcall('XPENDING', stream, group).err then
  return 0
end
local now, given = clock(), 0
even_when_full(due)
repeat
  local held = redis.call('XPENDING', stream, group, '-', '+', 100, member)
  for _, pending in ipairs(held) do
    if not give_back(stream, group, due, pending[1], now) then
      redis.call('HINCRBY', consumer, 'missed', 1)
    end
    given = given + 1
  end
until #held == 0
redis.call('XGROUP', 'DELCONSUMER', stream, group, member)
redis.call('ZREM', stream .. ':members:' .. name, member)
if redis.call('GET', lease) == member then
  redis.call('DEL', lease)
end
if redis.call('HGET', consumer, 'holder') == member then
  redis.call('HDEL', consumer, 'holder')
end
wake(stream)
return given
