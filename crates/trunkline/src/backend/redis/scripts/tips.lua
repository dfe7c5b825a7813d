-- Where a stream stands. KEYS: stream, count of messages ever added.
-- Answers {last id ever, newest id kept or '', messages ever added}.
local last, newest = ends(KEYS[1])
return { last, newest, added(KEYS[1]) }
