"""Commands about machines and money: hosts, offers, orphans, cost, ssh, notify."""
