-- The URL says the name for the ClientHello; this is where to connect to, whatever the resolver knows of that name.
function wrk.resolve(_, service)
    wrk.addrs = wrk.lookup("127.0.0.1", service)
end
