-- Last in a transaction that `lead` leads, right behind its XADDs: whether all of them were carried out. Their ids ascend,
-- so the last one tells.
-- KEYS: stream, record of this publisher's last transaction. ARGV: name of the transaction, id of its last message.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local name = string.match(redis.call('GET', KEYS[2]) or '', '^(%d+) %d+$')
if name == ARGV[1] and not (last and last[1] == ARGV[2]) then
  redis.call('SET', KEYS[2], name .. ' BROKEN not all of the transaction was stored', 'PX', 60000)
end
