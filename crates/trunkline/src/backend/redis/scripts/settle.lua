-- Settles deliveries, each only if the member still owns it in the attempt it names.
-- KEYS: stream. ARGV: consumer, member, identity of the consumer, then for each: id, attempt, what
-- ('ack', 'nak', 'progress'), delay of a nak in ms. Answers 1 for each that counted, else 0.
local stream, name, member = KEYS[1], ARGV[1], ARGV[2]
local group = group_of(name, ARGV[3])
local consumer, due = stream .. ':consumer:' .. name, stream .. ':due:' .. name
local now = clock()
even_when_full(due)
local ours = redis.call('HGET', consumer, 'identity') == ARGV[3]
local answers, woken = {}, false
-- Acks are carried out together at the end; what this batch has acknowledged already is over for the rest of it.
local done, acked = {}, {}
for i = 4, #ARGV, 4 do
  local id, what = ARGV[i], ARGV[i + 2]
  local held = ours and not done[id] and redis.pcall('XPENDING', stream, group, id, id, 1)[1]
  if not held or held[2] ~= member or held[4] ~= tonumber(ARGV[i + 1]) then
    answers[#answers + 1] = 0
  elseif what == 'ack' then
    done[id] = true
    acked[#acked + 1] = id
    answers[#answers + 1] = 1
    if #acked == 500 then
      redis.call('XACK', stream, group, unpack(acked))
      acked = {}
    end
  elseif what == 'nak' then
    local kept = give_back(stream, group, due, id, now + tonumber(ARGV[i + 3]))
    if not kept then
      redis.call('HINCRBY', consumer, 'missed', 1)
    end
    answers[#answers + 1] = 1
    woken = true
  else
    -- The lease starts anew; the attempt stays the same.
    local kept = #redis.call('XCLAIM', stream, group, member, 0, id, 'JUSTID') > 0
    if not kept then
      -- Limits removed the message while it was handled. Its handler may finish; nothing can be delivered again.
      redis.call('XACK', stream, group, id)
      redis.call('HINCRBY', consumer, 'missed', 1)
    end
    answers[#answers + 1] = kept and 1 or 0
  end
end
if #acked > 0 then
  redis.call('XACK', stream, group, unpack(acked))
end
if woken then
  wake(stream)
end
redis.call('ZADD', stream .. ':members:' .. name, 'XX', now, member)
return answers
